"""The front door: one text or many, seeds, streams, progress, and what is left behind."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from bark_fast import (
    Bark,
    BarkFastWarning,
    BarkModel,
    BarkProcessor,
    GenerationError,
    GenerationParams,
    InputError,
    Speech,
    devices,
)
from bark_fast.devices import resolve_device, resolve_dtype, resolve_impl
from bark_fast.kernels import why_not_native
from bark_fast.kernels.cpu import native
from helpers.checkpoints import Checkpoint
from helpers.joining import joinable

SAMPLED = GenerationParams(temperature=1.0, max_semantic_tokens=20, min_eos_p=0, seed=11)
GREEDY = replace(SAMPLED, temperature=0)


def same(a: Speech, b: Speech) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("semantic_tokens", "coarse_tokens", "fine_tokens", "samples")
    )


def test_one_text(small: Checkpoint) -> None:
    speech = small.bark.generate("  Hello,\n you ", params=SAMPLED)
    assert isinstance(speech, Speech)
    assert speech.text == "Hello, you"
    assert speech.seed == 11
    assert speech.sample_rate_hz == small.bark.sample_rate_hz == 8000
    n_frames = speech.fine_tokens.shape[1]
    assert speech.semantic_tokens.shape == (20,)
    assert speech.coarse_tokens.shape == (2, n_frames)
    assert speech.fine_tokens.shape == (5, n_frames)
    assert speech.samples.shape == (8 * n_frames,)
    assert speech.samples.dtype == np.float32
    assert speech.semantic_tokens.dtype == speech.fine_tokens.dtype == np.int64
    assert speech.duration_s == len(speech.samples) / 8000
    assert np.isfinite(speech.samples).all()
    assert speech.finish_reason == "length"
    assert list(speech.timings) == ["semantic", "coarse", "fine", "codec"]
    assert all(seconds > 0 for seconds in speech.timings.values())


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists(small: Checkpoint, kind: type) -> None:
    texts = ["One", "Two two", "Three"]
    spoken = small.bark.generate(kind(texts), params=SAMPLED)
    assert isinstance(spoken, list)
    assert [speech.text for speech in spoken] == texts
    assert not same(spoken[0], spoken[1])
    assert small.bark.generate(kind(texts[:1]), params=SAMPLED)[0].text == "One"
    assert small.bark.generate(kind()) == []


def test_one_each(small: Checkpoint) -> None:
    """Each is what its own arguments give alone, whatever else is in the list."""
    texts = ["One", "Two two", "One", "One"]
    voices = [None, small.voice(20), small.bark.load_voice(small.voice(9)), None]
    params = [SAMPLED, None, GREEDY, replace(SAMPLED, seed=12)]
    params[1] = GenerationParams(seed=4, max_semantic_tokens=7)
    spoken = small.bark.generate(texts, voice=voices, params=params)
    for text, voice, own, speech in zip(texts, voices, params, spoken, strict=True):
        assert same(speech, small.bark.generate(text, voice=voice, params=own))
    assert not same(spoken[0], spoken[3])  # the seed
    assert not same(spoken[0], spoken[2])


def test_one_for_all(small: Checkpoint) -> None:
    voice = small.voice(20)
    spoken = small.bark.generate(["One", "Two"], voice=voice, params=SAMPLED)
    for text, speech in zip(["One", "Two"], spoken, strict=True):
        assert same(speech, small.bark.generate(text, voice=voice, params=SAMPLED))
        assert not same(speech, small.bark.generate(text, params=SAMPLED))


def test_seeds(small: Checkpoint) -> None:
    unseeded = replace(SAMPLED, seed=None)
    first, second = small.bark.generate(["One", "One"], params=unseeded)
    assert first.seed != second.seed
    assert not same(first, second)
    assert same(first, small.bark.generate("One", params=replace(SAMPLED, seed=first.seed)))
    largest = small.bark.generate("One", params=replace(SAMPLED, seed=2**64 - 1))
    assert largest.seed == 2**64 - 1
    assert not same(largest, small.bark.generate("One", params=replace(SAMPLED, seed=0)))


def test_defaults_are_the_checkpoints(small: Checkpoint) -> None:
    """None and the value that it stands for give the same tokens."""
    limit = GenerationParams(max_semantic_tokens=20, seed=3)
    spelled_out = replace(
        limit, temperature=0.7, fine_temperature=0.5, top_k=0, top_p=1.0, min_eos_p=0.2
    )
    expected = small.bark.generate("One", params=spelled_out)
    assert same(small.bark.generate("One", params=limit), expected)
    assert not same(small.bark.generate("One", params=replace(limit, temperature=3.0)), expected)


@pytest.mark.parametrize("seconds", [0.06, 0.5, 1.0])
def test_limits(small: Checkpoint, seconds: float) -> None:
    """A second has 1 000 frames of 8 samples, but 8.5 frames of codes: the codec's clock counts."""
    speech = small.bark.generate("One", params=replace(GREEDY, max_duration_s=seconds))
    assert 0 < speech.duration_s <= seconds
    assert speech.finish_reason == "length"


def test_top_k_of_one_is_greedy(small: Checkpoint) -> None:
    params = replace(SAMPLED, temperature=1.0, top_k=1)
    assert same(
        small.bark.generate("One", params=params), small.bark.generate("One", params=GREEDY)
    )


# From text to semantic tokens, and from them to speech


@pytest.mark.parametrize("with_voice", [False, True])
@pytest.mark.parametrize("params", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_the_two_halves_are_the_whole(
    small: Checkpoint, params: GenerationParams, with_voice: bool
) -> None:
    voice = small.voice(20) if with_voice else None
    whole = small.bark.generate("One", voice=voice, params=params)
    tokens = small.bark.semantic("One", voice=voice, params=params)
    assert (tokens.dtype, tokens.shape) == (np.int64, (20,))
    speech = small.bark.speak_tokens(tokens, voice=voice, params=params)
    assert same(speech, whole)
    assert (speech.text, speech.finish_reason, speech.seed) == ("", "given", 11)
    assert list(speech.timings) == ["coarse", "fine", "codec"]
    assert small.bark.engine.used_pages == 0


def test_lists_of_halves(small: Checkpoint) -> None:
    """Each is what its own arguments give alone, in one batch with whole ones before and after."""
    texts, voices = ["One", "Two two", "One"], [None, small.voice(20), small.voice(9)]
    params = [SAMPLED, GREEDY, replace(SAMPLED, seed=12, max_semantic_tokens=7)]
    spoken = small.bark.generate(texts, voice=voices, params=params)
    tokens = small.bark.semantic(texts, voice=voices, params=params)
    assert [len(own) for own in tokens] == [20, 20, 7]
    again = small.bark.speak_tokens(tokens, voice=voices, params=params)
    assert all(same(a, b) for a, b in zip(again, spoken, strict=True))
    assert small.bark.semantic([]) == small.bark.speak_tokens([]) == []


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        np.ndarray.tolist,
        torch.from_numpy,
        lambda t: t.astype(np.int32),
        lambda t: t.astype(np.uint8),
        lambda t: np.repeat(t, 2)[::2],
    ],
)
def test_kinds_of_tokens(small: Checkpoint, wrap: Any) -> None:
    tokens = np.arange(20) * 3
    expected = small.bark.speak_tokens(tokens, params=GREEDY)
    assert same(small.bark.speak_tokens(wrap(tokens), params=GREEDY), expected)
    (one,) = small.bark.speak_tokens([wrap(tokens)], params=GREEDY)
    assert same(one, expected)


def test_more_tokens_than_the_model_writes(small: Checkpoint) -> None:
    """The prompts of two texts, one after the other, say."""
    tokens = np.arange(400) % 100
    assert small.config.semantic_rules.max_new_tokens < 400
    speech = small.bark.speak_tokens(tokens, params=GenerationParams(seed=1))
    assert np.array_equal(speech.semantic_tokens, tokens)
    assert speech.coarse_tokens.shape == (2, 660)
    assert len(speech.samples) == 660 * 8
    shorter = small.bark.speak_tokens(tokens[:200], params=GenerationParams(seed=1))
    # The first windows do not know what comes after them.
    assert np.array_equal(speech.coarse_tokens[:, :200], shorter.coarse_tokens[:, :200])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (None, "semantic_tokens [*] is missing"),
        (7, "semantic_tokens must have shape [*], got []"),
        ("One", "semantic_tokens must hold integers, got <U3"),
        (np.array([1.0, 2.25]), "semantic_tokens must hold integers, got float64 with 2.25"),
        (np.array([np.nan]), "semantic_tokens must hold integers, got float64 with nan"),
        (torch.tensor([0.5], dtype=torch.bfloat16), "must hold integers, got float32 with 0.5"),
        (np.array([True]), "semantic_tokens must hold integers, got bool"),
        (np.array([[1, 2]]), "semantic_tokens must have shape [*], got [1, 2]"),
        ([3, 100], "semantic_tokens must hold values from 0 to 99, got 3 to 100"),
        ([-1], "semantic_tokens must hold values from 0 to 99, got -1 to -1"),
        ([[1], [2.5]], "semantic_tokens[1] must hold integers, got float64"),
        ([[1], "One"], "semantic_tokens[1] must hold integers"),
        ([1.5], "semantic_tokens[0] must hold integers, got float64"),
        (list(range(21)), "semantic_tokens must be at most max_semantic_tokens (20), got 21"),
        ([[1], list(range(21))], "semantic_tokens[1] must be at most max_semantic_tokens (20)"),
    ],
)
def test_tokens_that_cannot_be_said(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch, tokens: Any, message: str
) -> None:
    calls = spy_on_submissions(monkeypatch, small.bark)
    with pytest.raises(InputError) as caught:
        small.bark.speak_tokens(tokens, params=GREEDY)
    assert message in str(caught.value)
    assert calls == []


@pytest.mark.parametrize(
    "nothing",
    [np.array([]), np.zeros(0, np.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), ()],
    ids=repr,
)
def test_no_tokens_are_an_empty_speech(small: Checkpoint, nothing: Any, tmp_path: Path) -> None:
    """What `semantic` gives for a text without speech, `speak_tokens` takes."""
    params = GenerationParams(min_eos_p=1e-9, seed=1)  # ends as soon as it may
    whole = small.bark.generate("Hello", params=params)
    assert small.bark.semantic("Hello", params=params).shape == (0,)
    voice = small.voice(20)
    one, two, three = small.bark.speak_tokens(
        [nothing, [3, 4], nothing], voice=voice, params=params
    )
    for speech in (small.bark.speak_tokens(np.asarray(nothing), params=params), one, three):
        assert speech.samples.shape == (0,)
        assert speech.samples.dtype == np.float32
        for name in ("semantic_tokens", "coarse_tokens", "fine_tokens"):
            assert getattr(speech, name).shape == getattr(whole, name).shape
            assert getattr(speech, name).dtype == np.int64
        assert (speech.finish_reason, speech.duration_s, speech.seed) == ("given", 0.0, 1)
    assert len(two.samples)
    assert small.bark.speak_tokens([]) == small.bark.generate([]) == small.bark.semantic([]) == []
    one.save(tmp_path / "empty.wav")
    assert soundfile.info(tmp_path / "empty.wav").frames == 0
    one.save(tmp_path / "empty.flac")  # of libsndfile's own accord a file of no bytes
    assert soundfile.info(tmp_path / "empty.flac").frames <= 1
    with pytest.raises(InputError, match="at least one frame, got an empty one"):
        one.to_voice()


@pytest.mark.parametrize("kind", [list, tuple, np.float32, np.uint16, "tensor", "tensors"])
def test_kinds_of_whole_numbers(small: Checkpoint, kind: Any) -> None:
    tokens = [3, 0, 99, 7]
    expected = small.bark.speak_tokens(tokens, params=GREEDY)
    given: Any
    if kind in (list, tuple):
        given = kind(float(t) for t in tokens)
    elif kind == "tensor":
        given = torch.tensor(tokens, dtype=torch.bfloat16, requires_grad=True)
    elif kind == "tensors":
        given = list(torch.tensor(tokens))
    else:
        given = np.array(tokens, dtype=kind)
    assert same(small.bark.speak_tokens(given, params=GREEDY), expected)


@pytest.mark.parametrize("text", ["...", "?!", "«»", "— …"])
def test_punctuation_that_says_nothing_is_a_warning(small: Checkpoint, text: str) -> None:
    silent = GenerationParams(min_eos_p=1e-9, seed=1)  # ends as soon as it may
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: small.bark.generate(text, params=silent),
        "list": lambda: small.bark.generate(["a", text], params=silent)[1],
        "stream": lambda: next(small.bark.stream(text, params=silent)),
        "semantic": lambda: small.bark.semantic(text, params=silent),
    }
    for name, call in calls.items():
        with pytest.warns(BarkFastWarning, match="holds punctuation only") as caught:
            said = call()
        assert len(said if name == "semantic" else said.samples) == 0
        assert len(caught) == 1
        if name != "stream":  # the warning shows the caller's line
            assert caught[0].filename == __file__
    spoken = GenerationParams(min_semantic_tokens=3, max_semantic_tokens=3, seed=1)
    assert len(small.bark.generate(text, params=spoken).samples)


def test_tokens_that_last_too_long(small: Checkpoint) -> None:
    """62 tokens are 102 frames of 8 samples, at 8 kHz."""
    tokens, params = [1] * 62, GenerationParams(max_duration_s=0.102)
    assert small.bark.speak_tokens(tokens, params=params).duration_s == 0.102
    with pytest.raises(InputError, match=r"must last at most max_duration_s \(0\.101\), got 62"):
        small.bark.speak_tokens(tokens, params=replace(params, max_duration_s=0.101))
    with pytest.raises(InputError, match=r"^semantic_tokens\[1\] must last at most max_duration_s"):
        small.bark.speak_tokens([tokens, [1] * 63], params=params)


@pytest.mark.parametrize("name", ["voice", "params"])
def test_one_each_of_tokens(small: Checkpoint, name: str) -> None:
    message = f"{name} must have one entry for each of the 2 entries of semantic_tokens, got 1"
    with pytest.raises(InputError, match=message):
        small.bark.speak_tokens([[1], [2]], **{name: [None]})


@pytest.mark.parametrize("stage", ["wave", "", None, 3])
def test_a_last_stage_that_is_none(small: Checkpoint, stage: Any) -> None:
    message = f"last_stage must be one of semantic, coarse, fine, codec, got {stage!r}"
    with pytest.raises(InputError, match=message):
        small.bark.request("One", last_stage=stage)


def test_progress_of_halves(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = small.bark.semantic(["One", "Two"], params=SAMPLED, progress=True)
    printed = capsys.readouterr().err
    assert "2/2 semantic:  100%" in printed
    assert "coarse" not in printed
    small.bark.speak_tokens(tokens, params=SAMPLED, progress=True)
    printed = capsys.readouterr().err
    assert "0/2 coarse" in printed
    assert "2/2 codec:  100%" in printed
    assert "semantic" not in printed


# Streams

LONG = "One two three. Four five six. Seven eight."


def test_stream(small: Checkpoint) -> None:
    """Sentence i has seed + i; all have the first one's voice."""
    parts = list(small.bark.stream(LONG, params=SAMPLED))
    assert [part.text for part in parts] == small.bark.split(LONG, max_tokens=20)
    assert [part.text for part in parts] == ["One two three.", "Four five six.", "Seven eight."]
    assert [part.seed for part in parts] == [11, 12, 13]
    alone = [small.bark.generate(parts[0].text, params=SAMPLED)]
    for i in (1, 2):
        own = replace(SAMPLED, seed=11 + i)
        voice = parts[0].to_voice()
        alone.append(small.bark.generate(parts[i].text, voice=voice, params=own))
        other = small.bark.generate(parts[i].text, params=own)
        assert not np.array_equal(parts[i].semantic_tokens, other.semantic_tokens)
    assert all(same(a, b) for a, b in zip(parts, joinable(alone), strict=True))


@pytest.mark.parametrize("pause_s", [0.0, 0.25])
def test_the_parts_of_a_stream_can_be_joined(small: Checkpoint, pause_s: float) -> None:
    """They fade where they meet, and the pause goes with the sentence before it."""
    voice = small.voice(20)
    parts = list(small.bark.stream(LONG, voice=voice, params=SAMPLED, pause_s=pause_s))
    alone = [
        small.bark.generate(part.text, voice=voice, params=replace(SAMPLED, seed=11 + i))
        for i, part in enumerate(parts)
    ]
    assert all(same(a, b) for a, b in zip(parts, joinable(alone, pause_s), strict=True))
    longer = [len(part.samples) - len(raw.samples) for part, raw in zip(parts, alone, strict=True)]
    assert longer == [8000 * pause_s, 8000 * pause_s, 0]
    assert np.array_equal(parts[0].samples[:100], alone[0].samples[:100]), "the outer edge stays"
    assert parts[1].samples[0] == 0.0 != alone[1].samples[0]


def test_one_sentence_is_what_generate_gives(small: Checkpoint) -> None:
    (part,) = small.bark.stream("Hello you.", params=SAMPLED, pause_s=1.0)
    assert same(part, small.bark.generate("Hello you.", params=SAMPLED))


def test_stream_with_a_voice(small: Checkpoint) -> None:
    voice = small.voice(20)
    parts = list(small.bark.stream(LONG, voice=voice, params=SAMPLED))
    alone = [
        small.bark.generate(part.text, voice=voice, params=replace(SAMPLED, seed=11 + i))
        for i, part in enumerate(parts)
    ]
    assert all(same(a, b) for a, b in zip(parts, joinable(alone), strict=True))


def test_stream_seeds(small: Checkpoint) -> None:
    first, second, _ = small.bark.stream(LONG, params=replace(SAMPLED, seed=2**64 - 1))
    assert (first.seed, second.seed) == (2**64 - 1, 0)
    drawn = list(small.bark.stream(LONG, params=replace(SAMPLED, seed=None)))
    assert [part.seed - drawn[0].seed for part in drawn] == [0, 1, 2]
    again = small.bark.stream(LONG, params=replace(SAMPLED, seed=drawn[0].seed))
    assert all(same(a, b) for a, b in zip(drawn, again, strict=True))


def test_stream_whose_first_sentence_is_no_voice(small: Checkpoint) -> None:
    """Too short to be a history; the next one is asked."""
    parts = list(small.bark.stream("ab cd", params=replace(SAMPLED, max_semantic_tokens=1)))
    assert len(parts) > 1
    alone = [
        small.bark.generate(part.text, params=replace(SAMPLED, max_semantic_tokens=1, seed=11 + i))
        for i, part in enumerate(parts)
    ]
    assert all(same(a, b) for a, b in zip(parts, joinable(alone), strict=True))


def test_stream_skips_what_cannot_be_said(small: Checkpoint) -> None:
    parts = list(small.bark.stream("Yes. \u200b\u200b. No.", params=GREEDY))
    assert "".join(part.text for part in parts).count("Yes") == 1
    assert parts[-1].text.endswith("No.")


def test_stream_is_lazy(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = spy_on_submissions(monkeypatch, small.bark)
    stream = small.bark.stream(LONG, params=GREEDY)
    assert inspect.isgenerator(stream)
    assert submitted == []
    next(stream)
    # The next sentences are under way while this one is listened to.
    assert len(submitted) == 3
    stream.close()
    wait_until_idle(small.bark)
    assert small.bark.engine.used_pages == 0


def test_a_stream_in_a_known_voice_works_ahead(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = spy_on_submissions(monkeypatch, small.bark)
    text = " ".join(f"This is sentence {i}." for i in range(9))
    stream = small.bark.stream(text, voice=small.voice(17), params=SAMPLED)
    first = next(stream)
    n = len(submitted)
    assert 2 <= n < 9
    rest = list(stream)
    assert len(submitted) == 9
    pieces = small.bark.split(text)
    voice = small.voice(17)
    alone = [
        small.bark.generate(piece, voice=voice, params=replace(SAMPLED, seed=SAMPLED.seed + i))
        for i, piece in enumerate(pieces)
    ]
    assert all(same(a, b) for a, b in zip([first, *rest], joinable(alone), strict=True))


def spy_on_submissions(monkeypatch: pytest.MonkeyPatch, bark: Bark) -> list[Any]:
    requests: list[Any] = []
    submit = bark.engine.submit

    def spy(request: Any, **options: Any) -> Any:
        requests.append(request)
        return submit(request, **options)

    monkeypatch.setattr(bark.engine, "submit", spy)
    return requests


def wait_until_idle(bark: Bark) -> None:
    deadline = time.monotonic() + 30
    while bark.engine.has_work:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": ["One", "Two", ""]},
        {"text": ["One", None]},
        {"text": ["One", "Two"], "voice": [None, "nobody"]},
        {"text": ["One", "Two"], "params": [GREEDY, 3]},
        {"text": ["One", "Two"], "params": [GREEDY]},
    ],
    ids=str,
)
def test_nothing_is_done_before_all_is_checked(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    calls = spy_on_submissions(monkeypatch, small.bark)
    with pytest.raises(InputError):
        small.bark.generate(**arguments)
    assert calls == []
    small.bark.generate("One", params=GREEDY)
    assert len(calls) == 1


# Progress


def test_progress(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["One", "Two"]
    quiet = small.bark.generate(texts, params=SAMPLED)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    shown = small.bark.generate(texts, params=SAMPLED, progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    for words in ("0/2 semantic", "0/2 coarse", "0/2 fine", "2/2 codec", "100%"):
        assert words in printed.err
    assert all(same(a, b) for a, b in zip(quiet, shown, strict=True))


def test_progress_of_a_stream(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = list(small.bark.stream(LONG, params=SAMPLED))
    shown = list(small.bark.stream(LONG, params=SAMPLED, progress=True))
    assert "3/3 codec" in capsys.readouterr().err
    assert all(same(a, b) for a, b in zip(quiet, shown, strict=True))


def test_progress_of_nothing(small: Checkpoint) -> None:
    assert small.bark.generate([], progress=True) == []


# What is left behind


def test_pages(small: Checkpoint) -> None:
    small.bark.generate(["One", "Two"], params=SAMPLED)
    assert small.bark.engine.used_pages == 0
    list(small.bark.stream(LONG, params=SAMPLED))
    assert small.bark.engine.used_pages == 0


def test_one_failure_of_a_list_loses_nothing(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    bark = small.bark
    expected = bark.generate(["One", "Three"], params=SAMPLED)
    finish = bark.engine._finish

    def finish_or_fail(utterance: Any, samples: Any) -> None:
        if utterance.request.text == "Two":
            raise RuntimeError("on purpose")
        finish(utterance, samples)

    with monkeypatch.context() as patch:
        patch.setattr(bark.engine, "_finish", finish_or_fail)
        with pytest.raises(GenerationError, match="1 of 3 utterances failed; text 1") as caught:
            bark.generate(["One", "Two", "Three"], params=SAMPLED)
        with pytest.raises(RuntimeError, match="on purpose"):
            bark.generate("Two", params=SAMPLED)
    first, error, third = caught.value.results
    assert same(first, expected[0])
    assert isinstance(error, RuntimeError)
    assert same(third, expected[1])
    assert bark.engine.used_pages == 0


# Devices and precision


def test_device_and_dtype(small: Checkpoint) -> None:
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("auto", cuda) == torch.bfloat16
    assert resolve_dtype("float16", cuda) == torch.float16
    assert resolve_dtype("bfloat16", cpu) == resolve_dtype(torch.bfloat16, cpu) == torch.bfloat16
    bark = Bark.from_pretrained(small.folder, device="cpu", dtype="bfloat16")
    assert (bark.device, bark.dtype) == (cpu, torch.bfloat16)
    speech = bark.generate("One", params=SAMPLED)
    assert np.isfinite(speech.samples).all()
    assert speech.samples.dtype == np.float32


def test_half_precision_on_a_cpu(small: Checkpoint) -> None:
    with pytest.warns(BarkFastWarning, match="float16 is slower than float32 on CPUs"):
        bark = Bark.from_pretrained(small.folder, device="cpu", dtype="float16")
    assert bark.dtype == torch.float32
    assert same(bark.generate("One", params=GREEDY), small.bark.generate("One", params=GREEDY))


# Imports

_IMPORT = """
import gc, sys, time
import torch
gc.disable()
start = time.process_time()
import bark_fast
{then}
print(time.process_time() - start, "transformers" in sys.modules)
"""


@pytest.mark.parametrize("then", ["", "bark_fast.Bark"])
def test_import_is_quick(then: str) -> None:
    """Beside torch, whose objects the garbage collector may look at meanwhile; the processor's time
    in the best of up to three runs, so that a busy machine does not matter."""
    seconds: list[float] = []
    while len(seconds) < 3 and not (seconds and min(seconds) < 0.3):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT.format(then=then)],
            capture_output=True,
            text=True,
            check=True,
        )
        spent, transformers_imported = done.stdout.split()
        seconds.append(float(spent))
        assert transformers_imported == "False"
    assert min(seconds) < 0.3


def test_plain_data_needs_no_torch() -> None:
    code = "import sys, bark_fast; bark_fast.GenerationParams(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_unknown_names() -> None:
    import bark_fast

    with pytest.raises(AttributeError, match="no attribute 'Barque'"):
        _ = bark_fast.Barque  # type: ignore[attr-defined]
    assert set(bark_fast.__all__) <= {*dir(bark_fast), *bark_fast._LAZY}


def test_a_tiny_temperature_is_greedy(small: Checkpoint) -> None:
    """Not logits that overflow."""
    cold = {"min_eos_p": 0, "max_semantic_tokens": 8, "seed": 1}
    greedy = small.bark.generate("Hello", params=GenerationParams(temperature=0, **cold))
    tiny = small.bark.generate("Hello", params=GenerationParams(temperature=1e-40, **cold))
    np.testing.assert_array_equal(tiny.fine_tokens, greedy.fine_tokens)


def test_no_duration_is_too_long_to_ask_for(small: Checkpoint) -> None:
    params = GenerationParams(max_duration_s=1e308, max_semantic_tokens=3, min_eos_p=0, seed=1)
    assert len(small.bark.generate("Hello", params=params).semantic_tokens) == 3


@pytest.mark.parametrize("impl", ["auto", "torch", "cpu"])
def test_a_text_does_not_end_before_its_least_length(small: Checkpoint, impl: str) -> None:
    bark = Bark.from_pretrained(small.folder, device="cpu", impl=impl)
    params = GenerationParams(min_eos_p=1e-9, seed=1)  # ends as soon as it may
    assert len(bark.generate("Hello", params=params).semantic_tokens) == 0
    least = [replace(params, min_semantic_tokens=n) for n in (1, 7, 0)]
    speeches = bark.generate(["Hello"] * 3, params=least)
    assert [len(s.semantic_tokens) for s in speeches] == [1, 7, 0]
    both = replace(params, min_semantic_tokens=9, max_semantic_tokens=4)
    assert len(bark.generate("Hello", params=both).semantic_tokens) == 4


def test_weights_in_8_bits(small: Checkpoint) -> None:
    """An utterance is what it is alone."""
    cpu = torch.device("cpu")
    dtype = resolve_dtype("int8", cpu)
    missing = why_not_native(cpu, dtype, int8=True)
    if missing:
        with pytest.raises(InputError, match="got 'int8'"):
            Bark.from_pretrained(small.folder, device="cpu", dtype="int8")
        pytest.skip(f"no 8-bit weights here: {missing}")
    bark = Bark.from_pretrained(small.folder, device="cpu", dtype="int8")
    assert bark.dtype == dtype
    texts = ["One", "Two two", "Three three three"]
    params = GenerationParams(temperature=0.8, min_eos_p=0, max_semantic_tokens=20, seed=3)
    together = bark.generate(texts, params=params)
    for text, speech in zip(texts, together, strict=True):
        alone = bark.generate(text, params=params)
        np.testing.assert_array_equal(alone.fine_tokens, speech.fine_tokens)


def test_8_bits_are_for_cpus_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(InputError, match="got 'int8': it serves CPUs, not cuda"):
        resolve_impl("auto", cuda, torch.bfloat16, int8=True)
    with pytest.raises(InputError, match='impl must be "auto" with dtype="int8"'):
        resolve_impl("torch", cpu, torch.float32, int8=True)
    monkeypatch.setattr(native, "why_not", lambda dtype, int8=False: "no avx512_vnni")
    assert resolve_dtype("int8", cpu) == torch.float32
    with pytest.raises(InputError, match="got 'int8': no avx512_vnni"):
        resolve_impl("auto", cpu, torch.float32, int8=True)


def test_impl_is_named_and_can_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, dtype = torch.device("cpu"), torch.device("cuda"), torch.float32
    assert resolve_impl("cpu", cpu, dtype) == "cpu"
    assert resolve_impl("torch", cpu, dtype) == "torch"
    assert resolve_impl("auto", cuda, dtype) == "triton"
    with pytest.raises(InputError, match='impl must be "auto", "torch", "cpu", "native" or'):
        resolve_impl("cuda", cpu, dtype)
    with pytest.raises(InputError, match="got 'cpu'"):
        resolve_impl("cpu", cuda, dtype)
    with pytest.raises(InputError, match="got 'native': it serves CPUs, not cuda"):
        resolve_impl("native", cuda, dtype)
    monkeypatch.setattr(native, "why_not", lambda dtype, int8=False: None)
    assert resolve_impl("auto", cpu, dtype) == resolve_impl("native", cpu, dtype) == "native"
    monkeypatch.setattr(native, "why_not", lambda dtype, int8=False: "no C compiler")
    assert resolve_impl("auto", cpu, dtype) == "cpu"
    with pytest.raises(InputError, match="got 'native': no C compiler"):
        resolve_impl("native", cpu, dtype)


def test_triton_without_a_gpu_or_its_interpreter_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "can_run_triton", lambda device: False)
    with pytest.raises(InputError, match="needs a CUDA device"):
        resolve_impl("triton", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("impl", ["auto", "cpu", "torch"])
def test_autocast_changes_nothing(small: Checkpoint, impl: str) -> None:
    """It is the calling thread's, and that one may step the engine."""
    built_without = Bark.from_pretrained(small.folder, device="cpu", impl=impl)
    expected = built_without.generate("One", params=GREEDY)
    with torch.autocast("cpu", torch.bfloat16):
        inside = built_without.generate("One", params=GREEDY)
        built_inside = Bark.from_pretrained(small.folder, device="cpu", impl=impl)
        assert torch.is_autocast_enabled("cpu")
        assert same(built_inside.generate("One", params=GREEDY), expected)
        assert same(next(built_inside.stream("One", params=GREEDY)), expected)
    assert same(inside, expected)
    assert same(built_inside.generate("One", params=GREEDY), expected)


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_autocast_changes_nothing_for_transformers_either(small: Checkpoint, impl: str) -> None:
    """The engine is built when something is first generated."""
    inputs = BarkProcessor.from_pretrained(small.folder)("One")
    options = {"do_sample": False, "semantic_max_new_tokens": 20}
    audio = []
    for inside in (False, True):
        model = BarkModel.from_pretrained(small.folder)
        model.engine_impl = impl
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            audio += [model.generate(**inputs, **options) for _ in range(2)]
    assert all(torch.equal(each, audio[0]) for each in audio)


def test_threads_take_turns(small: Checkpoint) -> None:
    """Each gets what its own seed gives, as if alone."""

    def speak(seed: int) -> list[int]:
        params = GenerationParams(seed=seed, min_eos_p=0, max_semantic_tokens=6)
        return small.bark.generate("Hello", params=params).fine_tokens.tolist()

    alone = [speak(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(speak, range(8))) == alone


def test_a_warning_names_the_line_that_loads(small: Checkpoint) -> None:
    with pytest.warns(BarkFastWarning, match="float16 is slower") as seen:
        Bark.from_pretrained(small.folder, device="cpu", dtype="float16")
    assert seen[0].filename == __file__
