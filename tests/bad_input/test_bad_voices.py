"""A voice that cannot be used is one of our errors, and it names the array or the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import BarkFastWarning, CheckpointError, InputError
from bark_fast.checkpoint.random import create_checkpoint
from bark_fast.checkpoint.source import Source
from bark_fast.types import Voice
from bark_fast.voices import VoiceLibrary, check_voice, open_voices
from helpers.bad_files import SHORT, Bomb, npy, npy_of_shape, npz, zip_of
from helpers.checkpoints import Checkpoint

# Arrays


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda voice: {k: v for k, v in voice.items() if k != key}


def _with(key: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda voice: {**voice, key: change(voice[key])}


def _set(index: Any, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change


def _frames(count: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def cut(voice: dict[str, Any]) -> dict[str, Any]:
        frames = {k: v[:, :count] for k, v in voice.items() if v.ndim == 2}
        return {**voice, **frames}

    return cut


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("semantic_prompt"), "semantic_prompt [*] is missing"),
        (_without("coarse_prompt"), "coarse_prompt [2, *] is missing"),
        (_without("fine_prompt"), "fine_prompt [5, *] is missing"),
        (_with("fine_prompt", lambda a: None), "fine_prompt [5, *] is missing"),
        (
            _with("semantic_prompt", lambda a: a + 0.5),
            "semantic_prompt must hold integers, got flo",
        ),
        (_with("coarse_prompt", lambda a: a > 0), "coarse_prompt must hold integers, got bool"),
        (_with("coarse_prompt", lambda a: a.astype(str)), "coarse_prompt must hold integers"),
        (_with("coarse_prompt", lambda a: a.astype(object)), "must hold integers, got object"),
        (_with("fine_prompt", lambda a: [[1], [1, 2]]), "fine_prompt must be an array of integers"),
        (_with("fine_prompt", lambda a: torch.full((5, 9), 0.5).bfloat16()), "fine_prompt"),
        (_with("semantic_prompt", lambda a: a[None]), "semantic_prompt must have shape [*], got"),
        (_with("semantic_prompt", lambda a: a[0]), "semantic_prompt must have shape [*], got []"),
        (_with("coarse_prompt", lambda a: a[0]), "coarse_prompt must have shape [2, *], got [33]"),
        (_with("coarse_prompt", lambda a: a[:1]), "must have shape [2, *], got [1, 33]"),
        (_with("fine_prompt", lambda a: a[:4]), "must have shape [5, *], got [4, 33]"),
        (_with("semantic_prompt", lambda a: a[:0]), "semantic_prompt must not be empty"),
        (_frames(0), "coarse_prompt must not be empty"),
        (_with("semantic_prompt", _set(3, -1)), "semantic_prompt must hold values from 0 to 99"),
        (_with("semantic_prompt", _set(3, 100)), "semantic_prompt must hold values from 0 to 99"),
        (_with("coarse_prompt", _set((1, 2), 64)), "coarse_prompt must hold values from 0 to 63"),
        (_with("fine_prompt", _set((4, 2), -1)), "fine_prompt must hold values from 0 to 63"),
        (
            _with("fine_prompt", lambda a: a.astype(np.uint64) + np.uint64(2**63)),
            "fine_prompt must hold values from 0 to 63",
        ),
        (
            lambda v: {k: a[..., :1] for k, a in v.items()},
            "must hold at least 2 semantic tokens and 4 coarse tokens, got 1 and 2",
        ),
        (lambda v: list(v.values()), "voice must be a preset of this checkpoint"),
        (lambda v: Voice(None, None, None), "semantic_prompt [*] is missing"),  # type: ignore[arg-type]
    ],
)
def test_voice_arrays(
    small: Checkpoint, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    good = small.voice(20)
    small.bark.load_voice(good)
    with pytest.raises(InputError) as caught:
        small.bark.load_voice(change(good))
    assert message in str(caught.value)


def test_a_voice_that_is_not_of_one_piece(small: Checkpoint) -> None:
    """transformers takes it, so it is taken, and said."""
    with pytest.warns(BarkFastWarning, match="should have about 33 frames for 20 .* got 20"):
        small.bark.load_voice(_frames(20)(small.voice(20)))


@pytest.mark.parametrize(
    "name",
    ["nobody", "", "../secret", "/etc/passwd", "voice.npy", "speaker_embeddings_path.json", None],
)
def test_voice_names(small: Checkpoint, name: Any) -> None:
    with pytest.raises(InputError, match=r"^voice must (be a preset of this checkpoint|not be)"):
        small.bark.load_voice(name)


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "voice must be a file that exists, got"),
        (b"", "is not a whole .npz file of plain arrays"),
        (b"not a zip", "is not a whole .npz file of plain arrays"),
        (b"PK\x03\x04 broken", "is not a whole .npz file of plain arrays"),
        (npy(SHORT), "is not a whole .npz file of plain arrays"),
        (npz(semantic_prompt=SHORT)[:-40], "is not a whole .npz file of plain arrays"),
        (npz(semantic_prompt=SHORT), "coarse_prompt [2, *] is missing"),
        (npz(other=SHORT), "semantic_prompt [*] is missing"),
        (zip_of(semantic_prompt=b"no array"), "semantic_prompt must hold integers, got |S8"),
        (zip_of(semantic_prompt=npy(SHORT)[:-9]), "is not a whole .npz file of plain arrays"),
        (
            zip_of(semantic_prompt=npy_of_shape(10**15)),  # promises more than there is
            "is not a whole .npz file of plain arrays",
        ),
    ],
)
def test_voice_files(
    small: Checkpoint, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "voice.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        small.bark.load_voice(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_voice_folder(small: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "voice.npz").mkdir()
    with pytest.raises(InputError, match="voice must be a file that exists"):
        small.bark.load_voice(tmp_path / "voice.npz")


def test_pickled_voice_is_not_executed(small: Checkpoint, tmp_path: Path) -> None:
    path, bait = tmp_path / "voice.npz", tmp_path / "executed"
    objects = np.array([Bomb(bait)], dtype=object)
    np.savez(path, semantic_prompt=objects, coarse_prompt=objects, fine_prompt=objects)
    with pytest.raises(InputError, match=r"is not a whole \.npz file of plain arrays"):
        small.bark.load_voice(path)
    assert not bait.exists()


def test_damaged_voice_files(small: Checkpoint, tmp_path: Path) -> None:
    """Wherever a byte is wrong, it is a voice that passes every check or our error."""
    path = tmp_path / "voice.npz"
    np.savez(path, **small.voice(20))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            small.bark.load_voice(path)
        except InputError:
            refused += 1
    assert refused > 100


# A checkpoint's presets


@pytest.fixture(scope="module")
def with_presets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint(tmp_path_factory.mktemp("presets") / "tiny")


_NAME = "v2/en_speaker_0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantic_prompt": "../secret.npy"}, "file name must stay in the folder"),
        ({"semantic_prompt": "/etc/passwd"}, "file name must stay in the folder"),
        ({"semantic_prompt": "a\\..\\..\\secret.npy"}, "file name must stay in the folder"),
        ({"semantic_prompt": "absent.npy"}, "absent.npy is missing"),
        ({"semantic_prompt": "speaker_embeddings"}, "speaker_embeddings is missing"),
        ({"semantic_prompt": None}, f"{_NAME} must name a file for semantic_prompt, got None"),
        ({"fine_prompt": 7}, f"{_NAME} must name a file for fine_prompt, got 7"),
        ({"fine_prompt": "config.json"}, "is not a whole .npy file of numbers"),
        ({"fine_prompt": "archive.npz"}, "is not a whole .npy file of numbers"),
        ({"fine_prompt": "empty.npy"}, "is not a whole .npy file of numbers"),
        ({"fine_prompt": "short.npy"}, "is not a whole .npy file of numbers"),
    ],
)
def test_presets(with_presets: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(with_presets, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / "archive.npz").write_bytes(npz(fine_prompt=SHORT))
    (folder / "empty.npy").write_bytes(b"")
    (folder / "short.npy").write_bytes(npy(SHORT)[:-9])
    np.save(tmp_path / "secret.npy", SHORT)
    index = json.loads((folder / "speaker_embeddings_path.json").read_text())
    for key, value in change.items():
        index[_NAME][key] = value
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(index))
    voices = open_voices(folder)
    assert _NAME in voices.names
    with pytest.raises(CheckpointError) as caught:
        voices.get(_NAME)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object, got a list"),
        ('{"a": ', "is not valid JSON"),
        ('{"someone": []}', "someone must name a file for semantic_prompt, got None"),
        ('{"someone": {}}', "someone must name a file for semantic_prompt, got None"),
    ],
)
def test_preset_index(small: Checkpoint, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "speaker_embeddings_path.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        VoiceLibrary(Source.open(tmp_path), small.config).get("someone")
    assert message in str(caught.value)
    assert "speaker_embeddings_path.json" in str(caught.value)


def test_voice_that_does_not_fit_the_checkpoint(small: Checkpoint, narrow: Checkpoint) -> None:
    with pytest.raises(InputError, match="semantic_prompt must hold values from 0 to 99"):
        check_voice(narrow.voice(40), small.config, name="mine")
