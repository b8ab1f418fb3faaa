"""The contract: greedy, float32, CPU, every stage's tokens equal transformers' BarkModel's, and the
audio is within 1e-5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from bark_fast import Bark, BarkFastWarning, GenerationParams, InputError
from helpers.checkpoints import Checkpoint, build_model, small_windows, write_checkpoint
from helpers.oracle import OracleSpeech, greedy

GREEDY = GenerationParams(temperature=0, min_eos_p=0, seed=0)


def assert_equal(speech, expected: OracleSpeech) -> None:
    np.testing.assert_array_equal(speech.semantic_tokens, expected.semantic)
    np.testing.assert_array_equal(speech.coarse_tokens, expected.coarse)
    np.testing.assert_array_equal(speech.fine_tokens, expected.fine)
    assert speech.samples.shape == expected.samples.shape
    np.testing.assert_allclose(speech.samples, expected.samples, rtol=0, atol=1e-5)
    assert speech.finish_reason == ("end" if expected.ended else "length")
    # A model that says the same token for ever would pass many of these tests by accident.
    if len(expected.semantic) > 20:
        assert len(np.unique(expected.semantic)) > 3
        assert len(np.unique(expected.fine)) > 10


def compare(checkpoint: Checkpoint, text: str, voice, max_tokens: int) -> None:
    ids = checkpoint.bark._tokenizer.ids(text)
    expected = greedy(checkpoint.model, ids, voice, max_new_tokens=max_tokens)
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=max_tokens, seed=0)
    assert_equal(checkpoint.bark.generate(text, voice=voice, params=params), expected)


# Small windows: 12 coarse tokens a window, 60 of history (18 semantic), 64 fine frames, hop 32.


@pytest.mark.parametrize("n_voice", [None, 2, 5, 17, 40, 90], ids=lambda n: f"voice{n}")
@pytest.mark.parametrize("max_tokens", [1, 2, 4, 19, 39, 148])
def test_small_windows(small: Checkpoint, n_voice: int | None, max_tokens: int) -> None:
    voice = None if n_voice is None else small.voice(n_voice)
    compare(small, "Hello, my dog!", voice, max_tokens)


@pytest.mark.parametrize("n_text", [1, 31, 32])
def test_text_lengths(small: Checkpoint, n_text: int) -> None:
    compare(small, ("abcdefghijklmnopqrstuvwxyz" * 2)[:n_text], None, 20)


@pytest.mark.filterwarnings("ignore::bark_fast.errors.BarkFastWarning")
def test_text_longer_than_the_prompt(small: Checkpoint) -> None:
    compare(small, "abcdefghijklmnopqrstuvwxyz" * 2, None, 20)


def test_longer_text_is_cut_with_a_warning(small: Checkpoint) -> None:
    with pytest.warns(BarkFastWarning, match="52 tokens long and the last 20 were cut"):
        small.bark.generate(
            "abcdefghijklmnopqrstuvwxyz" * 2, params=GenerationParams(max_semantic_tokens=1)
        )


# Bark's windows: 60 coarse tokens a window, 630 of history (209 semantic), 1 024 fine frames.


@pytest.mark.parametrize(
    ("n_voice", "max_tokens"),
    [
        (None, 1),
        (None, 20),  # one coarse window
        (None, 250),  # past the first 660 coarse tokens: the windows begin to move
        (60, 100),
        (420, 45),  # over 209 semantic tokens and 512 fine frames
        pytest.param(None, 700, marks=pytest.mark.slow),  # beyond 1 024 fine frames
        pytest.param(420, 400, marks=pytest.mark.slow),  # the same with the longest history
    ],
)
def test_bark_windows(narrow: Checkpoint, n_voice: int | None, max_tokens: int) -> None:
    voice = None if n_voice is None else narrow.voice(n_voice)
    compare(narrow, "Hello, my dog is cute", voice, max_tokens)


def test_through_the_processor(small: Checkpoint) -> None:
    """The whole of transformers' own path: processor, generate, audio."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(small.folder)
    inputs = transformers.BarkProcessor(tokenizer)(
        "Hello, my dog!", voice_preset=small.voice(30), max_length=32
    )
    audio = small.model.generate(
        **inputs, do_sample=False, fine_temperature=None, semantic_max_new_tokens=40
    )
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=40)
    speech = small.bark.generate("Hello, my dog!", voice=small.voice(30), params=params)
    np.testing.assert_allclose(speech.samples, audio[0].numpy(), rtol=0, atol=1e-5)


# The end of the text.


@pytest.mark.parametrize("after", [0, 1, 13])
def test_end_token(small: Checkpoint, tmp_path, after: int) -> None:
    """The end token wins at a chosen step, because its row of the head is made to."""
    config, generation = small_windows()
    model = build_model(config, seed=1, std=0.25)
    text = "Hello, my dog!"
    ids = small.bark._tokenizer.ids(text)
    eos = small.config.semantic_rules.eos_token_id
    head = model.semantic.lm_head.weight
    with torch.no_grad():
        head[eos] = 0
    model.generation_config = small.model.generation_config
    free = greedy(model, ids, max_new_tokens=60).semantic
    step = next(i for i in range(after, 60) if free[i] not in free[:i])
    with torch.no_grad():
        head[eos] = 1.01 * head[free[step]]
    write_checkpoint(tmp_path, model, generation)

    bark = Bark.from_pretrained(tmp_path, device="cpu")
    speech = bark.generate(text, params=GREEDY)
    assert speech.finish_reason == "end"
    np.testing.assert_array_equal(speech.semantic_tokens, free[:step])
    if step == 0:  # transformers cannot make an empty utterance
        assert speech.duration_s == 0
        assert speech.fine_tokens.shape == (5, 0)
    else:
        assert_equal(speech, greedy(model, ids, max_new_tokens=148))


def test_min_eos_p(small: Checkpoint) -> None:
    """Judged before temperature, strictly above the threshold, as transformers does."""
    text = "Hello, my dog!"
    ids = small.bark._tokenizer.ids(text)
    lengths = set()
    for min_eos_p in (1e-6, 1e-4, 1e-3, 5e-3, 2e-2, 0.1):
        params = GenerationParams(
            temperature=0, min_eos_p=min_eos_p, max_semantic_tokens=60, seed=0
        )
        speech = small.bark.generate(text, params=params)
        lengths.add(len(speech.semantic_tokens))
        if len(speech.semantic_tokens):  # transformers cannot make an empty utterance
            expected = greedy(small.model, ids, max_new_tokens=60, min_eos_p=min_eos_p)
            assert_equal(speech, expected)
    assert len(lengths) > 2, "the thresholds should have made a difference"


def test_end_never(small: Checkpoint) -> None:
    params = GenerationParams(temperature=0, min_eos_p=0, seed=0)
    speech = small.bark.generate("Hello", params=params)
    assert speech.finish_reason == "length"
    assert len(speech.semantic_tokens) == small.config.semantic_rules.max_new_tokens


# Checkpoints in other forms.


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("n_codes_given", [1, 2])
def test_fine_heads(tmp_path, small: Checkpoint, tie: bool, n_codes_given: int) -> None:
    config, generation = small_windows()
    config["fine_acoustics_config"]["tie_word_embeddings"] = tie
    config["fine_acoustics_config"]["n_codes_given"] = n_codes_given
    model = build_model(config, seed=2, std=0.25)
    write_checkpoint(tmp_path, model, generation)
    bark = Bark.from_pretrained(tmp_path, device="cpu")
    ids = bark._tokenizer.ids("Hi")
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=25)
    speech = bark.generate("Hi", params=params)
    assert_equal(speech, greedy(model, ids, max_new_tokens=25))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_near(small: Checkpoint, tmp_path, dtype: str) -> None:
    """Stored in half precision and run in float32, the tokens still equal transformers' own run of
    the same file; the contract for running in half precision is a kernel's error, not tokens."""
    config, generation = small_windows()
    model = build_model(config, seed=3, std=0.25).to(getattr(torch, dtype))
    write_checkpoint(tmp_path, model, generation)
    model.float()
    bark = Bark.from_pretrained(tmp_path, device="cpu", dtype="float32")
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=25)
    speech = bark.generate("Hi", params=params)
    assert_equal(speech, greedy(model, bark._tokenizer.ids("Hi"), max_new_tokens=25))


# The same with Triton's kernels, in its interpreter where there is no GPU.


@pytest.fixture(scope="module")
def triton_bark(small: Checkpoint) -> Bark:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Bark.from_pretrained(small.folder, device=device, dtype="float32", impl="triton")


@pytest.mark.parametrize(("n_voice", "max_tokens"), [(None, 5), (17, 2)])
def test_triton_gives_the_same_tokens(
    small: Checkpoint, triton_bark: Bark, n_voice: int | None, max_tokens: int
) -> None:
    """All four stages; more than one coarse window, prompts and decode steps."""
    voice = None if n_voice is None else small.voice(n_voice)
    text = "Hello, my dog!"
    ids = small.bark._tokenizer.ids(text)
    expected = greedy(small.model, ids, voice, max_new_tokens=max_tokens)
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=max_tokens)
    assert_equal(triton_bark.generate(text, voice=voice, params=params), expected)


def test_triton_draws_the_same_tokens(small: Checkpoint, triton_bark: Bark) -> None:
    params = GenerationParams(
        temperature=0.8, top_k=40, top_p=0.9, min_eos_p=0.1, max_semantic_tokens=3, seed=11
    )
    ours = small.bark.generate("Hello", params=params)
    theirs = triton_bark.generate("Hello", params=params)
    np.testing.assert_array_equal(theirs.semantic_tokens, ours.semantic_tokens)
    np.testing.assert_array_equal(theirs.coarse_tokens, ours.coarse_tokens)
    np.testing.assert_array_equal(theirs.fine_tokens, ours.fine_tokens)


def test_heads_that_triton_cannot_run_are_an_error(small: Checkpoint, tmp_path) -> None:
    config, generation = small_windows()
    config["fine_acoustics_config"]["num_heads"] = 2
    write_checkpoint(tmp_path, build_model(config, seed=1, std=0.25), generation)
    with pytest.raises(InputError, match=r"hidden_size / num_heads .* 48 / 2 = 24"):
        Bark.from_pretrained(tmp_path, device="cpu", impl="triton")
