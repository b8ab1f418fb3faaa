"""The data that users hold: parameters, speech, voices, and the files that come of them."""

from __future__ import annotations

import math
import os
from dataclasses import FrozenInstanceError, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from bark_fast import GenerationParams, InputError, Speech
from bark_fast.audio import check_audio_path
from bark_fast.types import TOKEN_STAGES

# GenerationParams: in range and out of range, by the end of the name

_IN_RANGE = {
    "temperature": st.floats(0, allow_nan=False, allow_infinity=False),
    "top_k": st.integers(0, 2**70),
    "top_p": st.floats(0, 1, exclude_min=True),
    "min_eos_p": st.floats(0, 1),
    "min_semantic_tokens": st.integers(0, 2**70),
    "max_semantic_tokens": st.integers(1, 2**70),
    "max_duration_s": st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False),
    "normalize_text": st.booleans() | st.sampled_from(["en", "de"]),
    "seed": st.integers(0, 2**64 - 1),
}
_NO_NUMBER = st.one_of(st.booleans(), st.text(max_size=3), st.binary(max_size=3), st.just([1]))
_NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
_NO_INTEGER = st.one_of(st.floats(), _NO_NUMBER)
_NEGATIVE = st.floats(max_value=0, exclude_max=True) | st.integers(max_value=-1)
_ABOVE_1 = st.floats(1, exclude_min=True) | st.integers(2)
_OUT_OF_RANGE = {
    "temperature": st.one_of(_NEGATIVE, _NOT_FINITE, _NO_NUMBER),
    "top_k": st.one_of(st.integers(max_value=-1), _NO_INTEGER),
    "top_p": st.one_of(st.just(0), _NEGATIVE, _ABOVE_1, _NOT_FINITE, _NO_NUMBER),
    "min_eos_p": st.one_of(_NEGATIVE, _ABOVE_1, _NOT_FINITE, _NO_NUMBER),
    "min_semantic_tokens": st.one_of(st.integers(max_value=-1), _NO_INTEGER),
    "max_semantic_tokens": st.one_of(st.integers(max_value=0), _NO_INTEGER),
    "max_duration_s": st.one_of(st.just(0), _NEGATIVE, _NOT_FINITE, _NO_NUMBER),
    "normalize_text": st.integers() | st.sampled_from(["", "e n", "en-US", b"en", "né"]),
    "seed": st.one_of(st.integers(max_value=-1), st.integers(2**64), _NO_INTEGER),
}
_NAMES = [f.name for f in fields(GenerationParams)]


def _of(name: str, table: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return next(strategy for end, strategy in table.items() if name.endswith(end))


@given(st.fixed_dictionaries({n: st.none() | _of(n, _IN_RANGE) for n in _NAMES}))
def test_everything_in_range_is_accepted(values: dict[str, Any]) -> None:
    params = GenerationParams(**values)
    assert {name: getattr(params, name) for name in _NAMES} == values
    for stage in TOKEN_STAGES:
        for name in ("temperature", "top_k", "top_p"):
            specific, general = values[f"{stage}_{name}"], values[name]
            assert params.for_stage(stage, name) == (general if specific is None else specific)


@pytest.mark.parametrize("name", _NAMES)
@given(data=st.data())
def test_everything_else_is_refused(name: str, data: st.DataObject) -> None:
    value = data.draw(_of(name, _OUT_OF_RANGE))
    with pytest.raises(InputError) as caught:
        GenerationParams(**{name: value})
    assert str(caught.value).startswith(f"{name} must be ")
    assert str(caught.value).endswith(f", got {value!r}")


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint64(2**64 - 1)},
        {"temperature": 1, "top_p": 1, "min_eos_p": 0, "max_duration_s": Fraction(1, 3)},
    ],
)
def test_other_number_types(values: dict[str, Any]) -> None:
    GenerationParams(**values)


def test_zero_of_a_stage_overrides() -> None:
    params = GenerationParams(temperature=0.9, coarse_temperature=0)
    assert params.for_stage("coarse", "temperature") == 0
    assert params.for_stage("fine", "temperature") == 0.9


def test_params_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        GenerationParams().seed = 3  # type: ignore[misc]


# Voices and speech


def _speech(n_frames: int = 6) -> Speech:
    rng = np.random.default_rng(0)
    return Speech(
        # Beside the ends of the range, so that a wrong scale or a clipped sample shows.
        samples=np.append(rng.uniform(-1, 1, 997), [-1, 0, 1 - 2**-15]).astype(np.float32),
        sample_rate_hz=24_000,
        text="Hello",
        semantic_tokens=rng.integers(100, size=4),
        coarse_tokens=rng.integers(64, size=(2, n_frames)),
        fine_tokens=rng.integers(64, size=(8, n_frames)),
        timings={"semantic": 0.5},
        finish_reason="end",
        seed=3,
    )


def test_voice_round_trip(tmp_path: Path) -> None:
    speech = _speech()
    voice = speech.to_voice("me")
    voice.save(tmp_path / "me.npz")
    with np.load(tmp_path / "me.npz", allow_pickle=False) as stored:
        assert sorted(stored) == ["coarse_prompt", "fine_prompt", "semantic_prompt"]
        np.testing.assert_array_equal(stored["semantic_prompt"], speech.semantic_tokens)
        np.testing.assert_array_equal(stored["coarse_prompt"], speech.coarse_tokens)
        np.testing.assert_array_equal(stored["fine_prompt"], speech.fine_tokens)
    assert [p.name for p in tmp_path.iterdir()] == ["me.npz"]


def test_silence_is_no_voice() -> None:
    with pytest.raises(InputError, match="at least one frame"):
        _speech(n_frames=0).to_voice()


@pytest.mark.parametrize(
    ("name", "subtype", "stored_as", "step"),
    [
        ("a.wav", None, ("WAV", "PCM_16"), 2**-15),
        ("a.wav", "PCM_16", ("WAV", "PCM_16"), 2**-15),
        ("a.wav", "PCM_24", ("WAV", "PCM_24"), 2**-23),
        ("a.wav", "FLOAT", ("WAV", "FLOAT"), 0),
        ("A.WAV", None, ("WAV", "PCM_16"), 2**-15),
        ("a.flac", None, ("FLAC", "PCM_16"), 2**-15),
        ("a.flac", "PCM_24", ("FLAC", "PCM_24"), 2**-23),
    ],
)
def test_speech_round_trip(
    tmp_path: Path, name: str, subtype: str | None, stored_as: tuple[str, str], step: float
) -> None:
    speech = _speech()
    assert speech.duration_s == 1000 / 24_000
    speech.save(tmp_path / name, subtype=subtype)
    info = soundfile.info(tmp_path / name)
    assert (info.format, info.subtype) == stored_as
    assert (info.samplerate, info.channels, info.frames) == (24_000, 1, 1000)
    read, _ = soundfile.read(tmp_path / name, dtype="float64")
    np.testing.assert_allclose(read, speech.samples, rtol=0, atol=step)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_save_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_text("old")
    _speech().save(str(path))
    assert soundfile.info(path).frames == 1000


def test_paths_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_audio_path("a.wav") == Path("a.wav")
    _speech().save("a.wav")
    _speech().to_voice().save("a.npz")
    assert sorted(os.listdir()) == ["a.npz", "a.wav"]
