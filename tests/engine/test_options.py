"""Options of an engine: what users may ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bark_fast import Bark, EngineOptions, GenerationParams
from bark_fast.kernels import why_not_native
from bark_fast.stages.codec import CodecStage
from helpers.checkpoints import Checkpoint


def test_bark_takes_options(small: Checkpoint) -> None:
    bark = Bark.from_pretrained(
        small.folder, device="cpu", engine=EngineOptions(max_batch_size=2, page_size=8)
    )
    bark.warm_up(progress=True)
    speeches = bark.generate(["One", "Two", "Three"], params=GenerationParams(seed=1))
    assert len(speeches) == 3
    assert bark.stats().finished == 3
    assert bark.stats().stages["semantic"].utterances_a_batch <= 2


def test_threads_are_the_engines_alone(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many compute, in whichever thread steps; what the caller has stays."""
    seen: list[int] = []
    run = CodecStage.run
    monkeypatch.setattr(
        CodecStage, "run", lambda *a: (seen.append(torch.get_num_threads()), run(*a))[1]
    )
    bark = Bark.from_pretrained(small.folder, device="cpu", engine=EngineOptions(threads=3))
    before = torch.get_num_threads()
    params = GenerationParams(temperature=0, max_semantic_tokens=12)
    bark.generate("Hello", params=params)
    next(iter(bark.stream("Hello", params=params)))
    assert seen == [3, 3]
    assert torch.get_num_threads() == before


def test_nothing_depends_on_the_number_of_threads() -> None:
    said = [
        Bark.from_pretrained("demo", device="cpu", engine=EngineOptions(threads=n)).generate(
            ["Two dogs bark.", "No."], params=GenerationParams(seed=3)
        )
        for n in (1, 2, 5)
    ]
    if why_not_native(torch.device("cpu"), torch.float32):
        pytest.skip("torch's own products round by the number of threads")
    for others in said[1:]:
        for speech, other in zip(said[0], others, strict=True):
            assert np.array_equal(speech.fine_tokens, other.fine_tokens)
            assert np.array_equal(speech.samples, other.samples)
