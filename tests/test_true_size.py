"""Once at the true size of bark-small: loading, all four stages, and the same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import transformers

from bark_fast import Bark, GenerationParams
from bark_fast.checkpoint.random import create_checkpoint
from helpers.oracle import greedy


@pytest.mark.slow
def test_bark_small(tmp_path) -> None:
    folder = create_checkpoint(tmp_path / "small", size="small")
    model = transformers.BarkModel.from_pretrained(folder).eval()
    bark = Bark.from_pretrained(folder, device="cpu")
    assert bark.config.semantic.num_layers == 12
    voice = bark.load_voice("v2/en_speaker_6")
    text = "Hello, my dog is cute"
    expected = greedy(
        model, bark.requests.tokenizer.ids(text), dict(voice.arrays()), max_new_tokens=25
    )
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=25)
    speech = bark.generate(text, voice=voice, params=params)
    np.testing.assert_array_equal(speech.semantic_tokens, expected.semantic)
    np.testing.assert_array_equal(speech.coarse_tokens, expected.coarse)
    np.testing.assert_array_equal(speech.fine_tokens, expected.fine)
    np.testing.assert_allclose(speech.samples, expected.samples, rtol=0, atol=1e-5)
