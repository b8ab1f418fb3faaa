"""generate(): transformers' audio for a row alone, and the same row in any batch."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import BatchFeature

import bark_fast
from bark_fast import BarkFastWarning, BarkModel, InputError, Voice
from helpers.checkpoints import Checkpoint
from helpers.hf_models import GREEDY, Seen, recorded_codes

TEXTS = ["Hello, my dog!", "Hi", "The quick brown fox jumps over"]


def compare(ours: Any, theirs: Any, inputs: Any, seen: Seen, **keywords: Any):
    """The tokens are equal, and the audio that both return is within 1e-5."""
    keywords = {**GREEDY, **keywords}
    audio = ours.generate(**inputs, **keywords)
    with recorded_codes(theirs) as their_codes:
        expected = theirs.generate(**inputs, **keywords)
    (speech,), (codes,) = seen.speeches, their_codes
    np.testing.assert_array_equal(speech.fine_tokens, codes.numpy())
    assert audio.shape == expected.shape
    assert audio.dtype == expected.dtype
    assert audio.device == expected.device
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5)
    if len(speech.semantic_tokens) > 20:
        assert len(np.unique(speech.fine_tokens)) > 10, "it says the same for ever"
    return speech


@pytest.mark.parametrize("n_voice", [None, 2, 5, 17, 40, 90], ids=lambda n: f"voice{n}")
@pytest.mark.parametrize("max_tokens", [1, 2, 4, 19, 39, 148])
def test_small_windows(
    small: Checkpoint, ours: Any, theirs: Any, processor: Any, seen: Seen,
    n_voice: int | None, max_tokens: int,
) -> None:  # fmt: skip
    voice = None if n_voice is None else small.voice(n_voice)
    inputs = processor(TEXTS[0], voice_preset=voice, max_length=32)
    compare(ours, theirs, inputs, seen, semantic_max_new_tokens=max_tokens)


@pytest.mark.parametrize("n_text", [1, 31, 32])
def test_text_lengths(ours: Any, theirs: Any, processor: Any, seen: Seen, n_text: int) -> None:
    inputs = processor(("abcdefghijklmnopqrstuvwxyz" * 2)[:n_text], max_length=32)
    compare(ours, theirs, inputs, seen, semantic_max_new_tokens=20)


@pytest.fixture(scope="module")
def narrow_models(narrow: Checkpoint) -> tuple[Any, Any]:
    """Bark's own windows."""
    return (
        BarkModel.from_pretrained(narrow.folder),
        transformers.BarkModel.from_pretrained(narrow.folder),
    )


@pytest.mark.parametrize(
    ("n_voice", "max_tokens"),
    [
        (None, 1),
        (None, 20),
        (None, 250),
        (60, 100),
        (420, 45),
        pytest.param(None, 700, marks=pytest.mark.slow),
        pytest.param(420, 400, marks=pytest.mark.slow),
    ],
)
def test_bark_windows(
    narrow: Checkpoint, narrow_models: Any, processor: Any, seen: Seen,
    n_voice: int | None, max_tokens: int,
) -> None:  # fmt: skip
    voice = None if n_voice is None else narrow.voice(n_voice)
    inputs = processor("Hello, my dog is cute", voice_preset=voice)
    compare(*narrow_models, inputs, seen, semantic_max_new_tokens=max_tokens)


def test_min_eos_p(ours: Any, theirs: Any, processor: Any, seen: Seen) -> None:
    inputs = processor(TEXTS[0], max_length=32)
    lengths = set()
    for min_eos_p in (1e-4, 1e-3, 5e-3, 2e-2, 0.1):
        keywords = {"min_eos_p": min_eos_p, "semantic_max_new_tokens": 60}
        seen.speeches.clear()
        ours.generate(**inputs, **GREEDY, **keywords)
        if len(seen.speeches.pop().semantic_tokens):  # transformers cannot make an empty one
            speech = compare(ours, theirs, inputs, seen, **keywords)
            lengths.add(len(speech.semantic_tokens))
    assert len(lengths) > 1, "the thresholds should have made a difference"


def test_min_new_tokens(ours: Any, theirs: Any, processor: Any, seen: Seen) -> None:
    inputs = processor(TEXTS[0], max_length=32)
    keywords = {"min_eos_p": 1e-4, "semantic_max_new_tokens": 40}
    ours.generate(**inputs, **GREEDY, **keywords)
    assert len(seen.speeches.pop().semantic_tokens) < 17
    speech = compare(ours, theirs, inputs, seen, **keywords, semantic_min_new_tokens=17)
    assert len(speech.semantic_tokens) >= 17


def test_nothing_said(ours: Any, processor: Any) -> None:
    """The end comes at once, which transformers cannot make audio of."""
    audio, lengths = ours.generate(
        **processor(TEXTS[:2], max_length=32), **GREEDY, min_eos_p=1e-7, return_output_lengths=True
    )
    assert audio.shape == (2, 0)
    assert lengths == [0, 0]


def test_without_a_mask_pads_are_text(ours: Any, theirs: Any, processor: Any, seen: Seen) -> None:
    inputs = processor(TEXTS[0], max_length=32)
    masked = ours.generate(**inputs, **GREEDY, semantic_max_new_tokens=30)
    seen.speeches.clear()
    compare(
        ours, theirs, {"input_ids": inputs["input_ids"]}, seen,
        semantic_max_new_tokens=30,
    )  # fmt: skip
    assert not torch.equal(ours.generate(inputs["input_ids"], **GREEDY, max_new_tokens=30), masked)


def test_a_mask_for_all_rows(ours: Any, processor: Any) -> None:
    inputs = processor(["Hello", "Howdy"], max_length=32)
    expected = ours.generate(**inputs, **GREEDY, semantic_max_new_tokens=8)
    inputs["attention_mask"] = inputs["attention_mask"][:1]
    assert torch.equal(ours.generate(**inputs, **GREEDY, semantic_max_new_tokens=8), expected)


def test_a_mask_of_zeros_inside(ours: Any, theirs: Any, processor: Any, seen: Seen) -> None:
    inputs = processor(TEXTS[0], max_length=32)
    inputs["attention_mask"][0, 2:5] = 0
    compare(ours, theirs, inputs, seen, semantic_max_new_tokens=30)


def test_a_prompt_of_another_length(ours: Any, processor: Any) -> None:
    """Nothing but padding is cut, and padding is added where tokens are missing."""
    expected = ours.generate(**processor(TEXTS[0], max_length=32), **GREEDY, max_new_tokens=12)
    for length in (20, 256):
        inputs = processor(TEXTS[0], max_length=length)
        assert inputs["input_ids"].shape == (1, length)
        assert torch.equal(ours.generate(**inputs, **GREEDY, max_new_tokens=12), expected)


def test_longer_text_is_cut_with_a_warning(
    ours: Any, theirs: Any, processor: Any, seen: Seen
) -> None:
    inputs = processor("abcdefghijklmnopqrstuvwxyz" * 2, max_length=32)
    assert inputs["input_ids"].shape == (1, 52)
    with pytest.warns(BarkFastWarning, match="the last 20 tokens of input_ids were cut"):
        compare(ours, theirs, inputs, seen, semantic_max_new_tokens=20)


# Batches.


def test_each_row_is_what_it_is_alone(small: Checkpoint, ours: Any, processor: Any) -> None:
    voices = [small.voice(30), None, small.voice(12, seed=5)]
    keywords = {"semantic_max_new_tokens": 60, "do_sample": True, "temperature": 0.9}
    inputs = processor(TEXTS, voice_preset=voices, max_length=32)
    audio, lengths = ours.generate(
        **inputs, **keywords, min_eos_p=0.01, seed=[5, 6, 2**64 - 1], return_output_lengths=True
    )
    assert audio.shape == (3, max(lengths))
    assert len(set(lengths)) > 1, "rows of one length show nothing of padding"
    for i, (text, voice, seed) in enumerate(zip(TEXTS, voices, [5, 6, 2**64 - 1], strict=True)):
        alone = ours.generate(
            **processor(text, voice_preset=voice, max_length=32), **keywords, min_eos_p=0.01,
            seed=seed,
        )  # fmt: skip
        assert alone.shape == (1, lengths[i])
        assert torch.equal(audio[i, : lengths[i]], alone[0])
        assert not audio[i, lengths[i] :].any()


def test_rows_of_one_voice(small: Checkpoint, ours: Any, processor: Any) -> None:
    inputs = processor(TEXTS, voice_preset=small.voice(30), max_length=32)
    audio = ours.generate(**inputs, **GREEDY, semantic_max_new_tokens=12)
    each = processor(TEXTS, voice_preset=[small.voice(30)] * 3, max_length=32)
    assert torch.equal(ours.generate(**each, **GREEDY, semantic_max_new_tokens=12), audio)
    plain = processor(TEXTS, max_length=32)
    assert not torch.equal(ours.generate(**plain, **GREEDY, semantic_max_new_tokens=12), audio)


def test_a_batch_is_transformers_where_that_keeps_rows_apart(
    small: Checkpoint, ours: Any, theirs: Any, processor: Any, seen: Seen
) -> None:
    """All of one length and never ended: nothing of the others gets into a row."""
    inputs = processor(TEXTS, voice_preset=small.voice(17), max_length=32)
    their_codes: list[torch.Tensor] = []
    for lengths in (None, True):
        keywords = {**GREEDY, "semantic_max_new_tokens": 33, "semantic_min_new_tokens": 33}
        keywords["return_output_lengths"] = lengths
        audio = ours.generate(**inputs, **keywords)
        with recorded_codes(theirs) as codes_of_rows:
            expected = theirs.generate(**inputs, **keywords)
        their_codes += codes_of_rows
        if lengths:
            assert type(audio) is type(expected) is tuple
            assert type(audio[1]) is type(expected[1]) is list
            assert audio[1] == expected[1]
            assert {type(n) for n in audio[1]} == {type(n) for n in expected[1]}
            audio, expected = audio[0], expected[0]
        assert audio.shape == expected.shape
        torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5)
    for speech, codes in zip(seen.speeches, their_codes, strict=True):
        np.testing.assert_array_equal(speech.fine_tokens, codes.numpy())


@pytest.mark.parametrize("kind", ["dict", "BatchFeature", "numpy", "Voice", "int32"])
def test_kinds_of_history(
    small: Checkpoint, ours: Any, theirs: Any, processor: Any, seen: Seen,
    kind: str,
) -> None:  # fmt: skip
    arrays = small.voice(30)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    history = {
        "dict": tensors,
        "BatchFeature": BatchFeature(tensors),
        "numpy": arrays,
        "Voice": Voice(**arrays),
        "int32": {key: tensor.int() for key, tensor in tensors.items()},
    }[kind]
    inputs = processor(TEXTS[0], max_length=32)
    audio = ours.generate(**inputs, history_prompt=history, **GREEDY, max_new_tokens=20)
    seen.speeches.clear()
    speech = compare(
        ours, theirs, {**inputs, "history_prompt": tensors}, seen,
        semantic_max_new_tokens=20,
    )  # fmt: skip
    np.testing.assert_array_equal(audio[0].numpy(), speech.samples)


def test_a_voice_whose_arrays_do_not_last_equally_long(
    small: Checkpoint, ours: Any, theirs: Any, processor: Any, seen: Seen
) -> None:
    """transformers takes it."""
    long, short = small.voice(40), small.voice(11)
    voice = {**long, "coarse_prompt": short["coarse_prompt"]}
    inputs = processor(TEXTS[0], voice_preset=voice, max_length=32)
    compare(ours, theirs, inputs, seen, semantic_max_new_tokens=30)


def test_numpy_and_lists_are_input_too(ours: Any, processor: Any) -> None:
    inputs = processor(TEXTS[0], max_length=32)
    expected = ours.generate(**inputs, **GREEDY, max_new_tokens=8)
    arrays = processor(TEXTS[0], max_length=32, return_tensors="np")
    assert isinstance(arrays["input_ids"], np.ndarray)
    lists = {key: value.tolist() for key, value in inputs.items()}
    flags = {**inputs, "attention_mask": inputs["attention_mask"].bool()}
    for given in (arrays, lists, flags):
        assert torch.equal(ours.generate(**given, **GREEDY, max_new_tokens=8), expected)


# Chance.

SAMPLED: dict[str, Any] = {
    "do_sample": True,
    "semantic_max_new_tokens": 25,
    "fine_temperature": 0.5,
}


def test_a_seed_repeats(ours: Any, processor: Any) -> None:
    inputs = processor(TEXTS[:2], max_length=32)
    audio = ours.generate(**inputs, **SAMPLED, seed=7)
    assert torch.equal(ours.generate(**inputs, **SAMPLED, seed=7), audio)
    assert torch.equal(ours.generate(**inputs, **SAMPLED, seed=np.int64(7)), audio)
    assert not torch.equal(ours.generate(**inputs, **SAMPLED, seed=8), audio)
    for seeds in ([7, 8], (7, 8), torch.tensor([7, 8]), np.array([7, 8])):
        assert torch.equal(ours.generate(**inputs, **SAMPLED, seed=seeds), audio)
    assert not torch.equal(ours.generate(**inputs, **SAMPLED, seed=[7, 9]), audio)
    last = 2**64 - 1
    assert torch.equal(
        ours.generate(**inputs, **SAMPLED, seed=last),
        ours.generate(**inputs, **SAMPLED, seed=[last, 0]),
    )


def test_manual_seed_repeats(ours: Any, processor: Any) -> None:
    inputs = processor(TEXTS[:2], max_length=32)
    torch.manual_seed(3)
    first, second = (ours.generate(**inputs, **SAMPLED) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(ours.generate(**inputs, **SAMPLED), first)
    assert torch.equal(ours.generate(**inputs, **SAMPLED), second)
    torch.manual_seed(4)
    assert not torch.equal(ours.generate(**inputs, **SAMPLED), first)


@pytest.mark.parametrize("keywords", [GREEDY, {**SAMPLED, "seed": 1}], ids=["greedy", "seeded"])
def test_the_global_generator_is_left_alone(ours: Any, processor: Any, keywords: Any) -> None:
    before = torch.get_rng_state()
    ours.generate(**processor("Hi", max_length=32), **{**keywords, "max_new_tokens": 3})
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_draws_as_bark(small: Checkpoint, ours: Any, processor: Any, seen: Seen) -> None:
    ours.generate(
        **processor(TEXTS[0], max_length=32), do_sample=True, temperature=0.8, top_k=40, top_p=0.9,
        seed=11, semantic_max_new_tokens=30,
    )  # fmt: skip
    params = bark_fast.GenerationParams(
        temperature=0.8, top_k=40, top_p=0.9, fine_top_k=0, fine_top_p=1, min_eos_p=0,
        max_semantic_tokens=30, seed=11,
    )  # fmt: skip
    expected = small.bark.generate(TEXTS[0], params=params)
    np.testing.assert_array_equal(seen.speeches[0].fine_tokens, expected.fine_tokens)


def test_two_threads(small: Checkpoint, processor: Any) -> None:
    model = BarkModel.from_pretrained(small.folder)
    results: dict[int, torch.Tensor] = {}

    def say(i: int) -> None:
        inputs = processor(TEXTS[i], max_length=32)
        results[i] = model.generate(**inputs, **SAMPLED, seed=i)

    threads = [threading.Thread(target=say, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, text in enumerate(TEXTS):
        alone = model.generate(**processor(text, max_length=32), **SAMPLED, seed=i)
        assert torch.equal(results[i], alone)


# What is wrong is said before anything is computed.

IDS = torch.zeros(2, 32, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": None}, r"input_ids must be given, integers \[B, T\], got None"),
        ({"input_ids": IDS[0]}, r"input_ids must have shape \[B, T\], .*, got \[32\]"),
        ({"input_ids": IDS[:0]}, r"input_ids must have shape .* got \[0, 32\]"),
        ({"input_ids": IDS.float()}, "input_ids must hold integers, got float32"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids must be an array"),
        ({"input_ids": IDS - 1}, "input_ids must be from 0 to 998, got -1 to -1"),
        ({"input_ids": IDS + 999}, "input_ids must be from 0 to 998, got 999 to 999"),
        (
            {"attention_mask": IDS[:, :5] + 1},
            r"attention_mask must have the shape of input_ids, \[2, 32\], .* got \[2, 5\]",
        ),
        ({"return_output_lengths": 1}, "return_output_lengths must be True, False or None, got 1"),
        ({"seed": -1}, r"seed must be an integer from 0 to 2\*\*64 - 1, or one a row, got -1"),
        ({"seed": 2**64}, "seed must be an integer"),
        ({"seed": True}, "seed must be an integer .* got True"),
        ({"seed": "7"}, "seed must be an integer .* got '7'"),
        ({"seed": 1.0}, r"seed must be an integer .* got 1\.0"),
        ({"seed": [1]}, "seed must be an integer, or one for each of the 2 rows.* got 1"),
        ({"seed": [1, None]}, r"seed\[1\] must be an integer .* got None"),
        ({"history_prompt": "v2/en_speaker_6"}, "history_prompt must be .* got str"),
        ({"history_prompt": [None]}, "an entry for each of the 2 rows of input_ids, got 1"),
        ({"history_prompt": [None, "x"]}, r"history_prompt\[1\] must be .* got str"),
        ({"history_prompt": {}}, r"history_prompt\['semantic_prompt'\] .* is missing"),
        (
            {"history_prompt": {"semantic_prompt": torch.full((4,), 0.5)}},
            r"history_prompt\['semantic_prompt'\] must hold integers, got float32 with 0\.5",
        ),
        (
            {"history_prompt": {"semantic_prompt": torch.zeros(4, dtype=torch.bool)}},
            r"history_prompt\['semantic_prompt'\] must hold integers, got bool",
        ),
        ({"input_ids": IDS.bfloat16()}, "input_ids must hold integers, got bfloat16"),
        ({"attention_mask": IDS.bfloat16()}, "attention_mask must be an array of numbers: .*BF"),
    ],
)
def test_wrong_input(ours: Any, seen: Seen, arguments: Any, message: str) -> None:
    given = {"input_ids": IDS, **GREEDY, **arguments}
    with pytest.raises(InputError, match=message):
        ours.generate(**given)
    assert not seen.requests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantic_prompt": np.arange(1)}, "at least 2 semantic tokens"),
        ({"coarse_prompt": np.zeros((2, 0), int)}, r"\['coarse_prompt'\] must not be empty"),
        ({"coarse_prompt": np.full((2, 9), 64)}, "from 0 to 63, got 64 to 64"),
        ({"fine_prompt": np.zeros((3, 9), int)}, r"must have shape \[5, \*\], got \[3, 9\]"),
        ({"semantic_prompt": np.array([1, 100])}, "from 0 to 99, got 1 to 100"),
    ],
)
def test_wrong_history(small: Checkpoint, ours: Any, seen: Seen, change: Any, message: str) -> None:
    voice = {**small.voice(20), **change}
    for history in (voice, [None, voice]):
        with pytest.raises(InputError, match=message):
            ours.generate(IDS, history, **GREEDY)
    assert not seen.requests
