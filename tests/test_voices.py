"""A voice is the same voice whichever way it comes: name, file, mapping, Voice."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import Bark, GenerationParams, Voice
from bark_fast.checkpoint.random import PRESET_NAMES, create_checkpoint
from bark_fast.voices import open_voices
from helpers.checkpoints import Checkpoint

PARAMS = GenerationParams(temperature=0, max_semantic_tokens=20, min_eos_p=0, seed=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint(tmp_path_factory.mktemp("voices") / "tiny")


def assert_same(a: Voice | None, arrays: Any) -> None:
    assert a is not None
    for key, array in a.arrays().items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, arrays[key])


def tokens(bark: Bark, voice: Any) -> np.ndarray:
    speech = bark.generate("Hello", voice=voice, params=PARAMS)
    return np.concatenate([speech.semantic_tokens, speech.fine_tokens.ravel()])


def test_presets(tiny: Path) -> None:
    voices = open_voices(tiny)
    assert voices.names == list(PRESET_NAMES)
    for name in voices.names:
        voice = voices.get(name)
        assert_same(
            voice,
            {k: np.load(tiny / f"speaker_embeddings/{name}_{k}.npy") for k in Voice.ARRAYS},
        )
        assert voice.name == name
        assert voices.get(name) is voice  # read once
    assert voices.get(None) is None


def test_presets_speak(tiny: Path) -> None:
    bark = Bark.from_pretrained(tiny, device="cpu")
    assert bark.voices == list(PRESET_NAMES)
    spoken = [tokens(bark, name) for name in (None, *PRESET_NAMES)]
    assert len({s.tobytes() for s in spoken}) == 3


def test_none_has_no_voice(small: Checkpoint) -> None:
    assert small.bark.voices == []


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        MappingProxyType,
        lambda v: Voice(**v),
        lambda v: {k: torch.from_numpy(a) for k, a in v.items()},
        lambda v: {k: a.tolist() for k, a in v.items()},
        lambda v: {**v, "text": "more is no harm"},
        *[
            lambda v, t=t: {k: a.astype(t) for k, a in v.items()}
            for t in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint64, ">i4")
        ],
        lambda v: {k: np.asfortranarray(a) for k, a in v.items()},
    ],
)
def test_kinds(small: Checkpoint, wrap: Any) -> None:
    arrays = small.voice(20)
    assert_same(small.bark.load_voice(wrap(arrays)), arrays)


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_as_others_write_them(
    small: Checkpoint, tmp_path: Path, save: Any, kind: type
) -> None:
    """suno's save_as_prompt is one call of np.savez."""
    arrays = small.voice(20)
    path = kind(tmp_path / "me.npz")
    save(
        path,
        semantic_prompt=arrays["semantic_prompt"],
        coarse_prompt=arrays["coarse_prompt"],
        fine_prompt=arrays["fine_prompt"],
    )
    voice = small.bark.load_voice(path)
    assert_same(voice, arrays)
    assert voice.name == str(path)


def test_the_callers_arrays_are_not_kept(small: Checkpoint) -> None:
    arrays = small.voice(20)
    voice = small.bark.load_voice(arrays)
    kept = voice.semantic_prompt.copy()
    arrays["semantic_prompt"][:] = 0
    np.testing.assert_array_equal(voice.semantic_prompt, kept)


def test_speech_becomes_a_voice(small: Checkpoint, tmp_path: Path) -> None:
    speech = small.bark.generate("My voice", params=PARAMS)
    voice = speech.to_voice()
    voice.save(tmp_path / "me.npz")
    with_voice = tokens(small.bark, voice)
    np.testing.assert_array_equal(tokens(small.bark, tmp_path / "me.npz"), with_voice)
    np.testing.assert_array_equal(tokens(small.bark, str(tmp_path / "me.npz")), with_voice)
    np.testing.assert_array_equal(tokens(small.bark, voice.arrays()), with_voice)
    assert tokens(small.bark, None).tobytes() != with_voice.tobytes()


def test_every_preset_made_by_speech_fits(small: Checkpoint) -> None:
    """Whatever length the model stops at, from the shortest that can be a voice."""
    for n in (4, 5, 6, 7, 21):
        params = GenerationParams(temperature=0, max_semantic_tokens=n, min_eos_p=0, seed=0)
        speech = small.bark.generate("Hi", params=params)
        assert len(speech.semantic_tokens) == n
        small.bark.load_voice(speech.to_voice())
