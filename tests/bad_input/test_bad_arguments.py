"""An argument that is wrong is one of our errors, and it names the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import Bark, GenerationParams, InputError
from bark_fast.audio import save_audio
from bark_fast.checkpoint.random import create_checkpoint
from bark_fast.devices import resolve_device, resolve_dtype
from bark_fast.types import Voice
from helpers.bad_files import SHORT
from helpers.checkpoints import Checkpoint

QUICK = GenerationParams(max_semantic_tokens=1, seed=0)


# Text and lists


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text must be a string or a list of strings, got NoneType"),
        (b"Hello", "text must be a string or a list of strings, got bytes"),
        (7, "text must be a string or a list of strings, got int"),
        ({"text": "Hello"}, "text must be a string or a list of strings, got dict"),
        (iter(["Hello"]), "text must be a string or a list of strings, got list_iterator"),
        ("", "text must not be empty, got ''"),
        (" \t\u3000\n", "text must not be empty"),
        ("Hello \ud800", "text must be valid Unicode"),
        ("\u200b", "text must hold something the tokenizer knows"),
        (["Hello", None], "text must be a string, got NoneType"),
        (["Hello", ""], "text must not be empty"),
        (["Hello", ["nested"]], "text must be a string, got list"),
        ([b"Hello"], "text must be a string, got bytes"),
    ],
)
def test_text(small: Checkpoint, text: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        small.bark.generate(text, params=QUICK)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (["a", "b"], {"voice": [None]}, "voice must have one entry for each of the 2 texts, got 1"),
        (["a"], {"voice": [None] * 2}, "voice must have one entry for each of the 1 texts, got 2"),
        (["a", "b"], {"params": []}, "params must have one entry for each of the 2 texts, got 0"),
        (["a"], {"voice": 5}, "voice must be one value or a list of them, got int"),
        (["a"], {"voice": [5]}, "voice must be a preset of this checkpoint"),
        (["a"], {"params": {"seed": 1}}, "params must be one value or a list of them, got dict"),
        (["a"], {"params": ["seed"]}, "params must be GenerationParams, got str"),
        ("a", {"params": {"seed": 1}}, "params must be GenerationParams, got dict"),
        ("a", {"params": [QUICK]}, "params must be GenerationParams, got list"),
        ("a", {"voice": [None]}, "voice must be a preset of this checkpoint"),
        ("a", {"voice": b"voice.npz"}, "voice must be a preset of this checkpoint"),
        ("a", {"params": GenerationParams(max_duration_s=1e-6)}, "max_duration_s must allow"),
    ],
)
def test_lists(small: Checkpoint, text: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        small.bark.generate(text, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, {}, "text must be a string, got NoneType"),
        (["a"], {}, "text must be a string, got list"),
        (" ", {}, "text must not be empty"),
        ("\u200b\u200b", {}, "text must hold something the tokenizer knows"),
        ("a", {"voice": "nobody"}, "voice must be a preset of this checkpoint (it has none)"),
        ("a", {"params": 3}, "params must be GenerationParams, got int"),
        ("a", {"language": None}, 'language must be a code such as "en", got None'),
        ("a", {"language": "../en"}, 'language must be a code such as "en", got'),
        ("a", {"params": GenerationParams(max_duration_s=1e-6)}, "max_duration_s must allow"),
    ],
)
def test_stream(small: Checkpoint, text: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        small.bark.stream(text, **arguments)  # not a single next()
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 2.5, "9", True])
def test_split_limit(small: Checkpoint, value: Any) -> None:
    with pytest.raises(InputError, match="max_tokens must be an integer >= 1"):
        small.bark.split("Hello", max_tokens=value)


# Parameters

_TEMPERATURES = [f"{stage}temperature" for stage in ("", "semantic_", "coarse_", "fine_")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, -0.1) for name in _TEMPERATURES],
        *[("temperature", v) for v in (float("nan"), float("inf"), True, "0.7", 1j, 10**400)],
        *[(name.replace("temperature", "top_k"), -1) for name in _TEMPERATURES],
        *[("top_k", v) for v in (2.0, False, "5", float("nan"))],
        *[(name.replace("temperature", "top_p"), 0) for name in _TEMPERATURES],
        *[("top_p", v) for v in (-0.5, 1.0001, float("nan"), True, [0.9])],
        *[("min_eos_p", v) for v in (-1e-9, 1.5, float("nan"), float("inf"), True, "0.2")],
        *[("max_semantic_tokens", v) for v in (0, -3, 1.5, True, "10")],
        *[("max_duration_s", v) for v in (0, -1, float("inf"), float("nan"), True, 10**400)],
        *[("seed", v) for v in (-1, 2**64, 1.0, True, "1")],
    ],
)
def test_params(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be "):
        GenerationParams(**{name: value})


# Device and precision


@pytest.mark.parametrize(
    "device", [None, 1, "gpu", "", "cuda:x", "cuda:-1", "meta", "cuda:99", b"cpu", torch.float32]
)
def test_device(device: Any) -> None:
    with pytest.raises(InputError, match=r"^device must be "):
        resolve_device(device)


@pytest.mark.parametrize(
    "dtype", [None, 32, "float64", "fp16", "", b"float32", torch.float64, torch.int8, np.float32]
)
def test_dtype(dtype: Any) -> None:
    with pytest.raises(InputError, match=r'^dtype must be "auto", .*got '):
        resolve_dtype(dtype, torch.device("cpu"))


# Which checkpoint


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "model must be a folder or a hub id, got None"),
        ("", "model must be a folder or a hub id, got ''"),
        (b"folder", "model must be a folder or a hub id, got b'folder'"),
        ("no-such-folder", "model must be a folder that exists or a hub id (owner/name)"),
        ("./no-such-folder", "model must be a folder that exists or a hub id (owner/name)"),
        ("/no/such/folder", "model must be a folder that exists or a hub id (owner/name)"),
        ("~no-such-user/bark", "model must be a folder that exists or a hub id (owner/name)"),
        (__file__, "model must be a folder, not a file"),
    ],
)
def test_model(model: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Bark.from_pretrained(model, device="cpu")
    assert message in str(caught.value)


# Files written


ENDINGS = "path must end in .wav, .flac, .mp3, .ogg, .opus, .aac, .pcm or .raw, got"


@pytest.mark.parametrize(
    ("path", "subtype", "message"),
    [
        ("speech.mp4", None, ENDINGS),
        ("speech", None, ENDINGS),
        ("speech.mp3", "PCM_16", "subtype must be one of MPEG_LAYER_III for .mp3, got 'PCM_16'"),
        ("speech.OGG", "FLOAT", "subtype must be one of OPUS, VORBIS for .OGG, got 'FLOAT'"),
        (".wav", None, ENDINGS),
        ("speech.wav", "PCM_8", "subtype must be one of PCM_16, PCM_24, FLOAT for .wav, got"),
        ("speech.flac", "FLOAT", "subtype must be one of PCM_16, PCM_24 for .flac, got 'FLOAT'"),
        ("speech.wav", 16, "subtype must be one of PCM_16, PCM_24, FLOAT for .wav, got 16"),
        ("absent/speech.wav", None, "path must be in a folder that exists, got"),
        ("folder.wav", None, "path must name a file, got the folder"),
        (None, None, "path must be a file name, got None"),
        (3, None, "path must be a file name, got 3"),
        (b"speech.m4a", None, ENDINGS),
        ("speech.wav/", None, "path must name a file, got the folder 'speech.wav/'"),
        ("a\0b.wav", None, "path must be a file name without a null character"),
        ("\ud800.wav", None, r"path must be a file name, got '\ud800.wav': "),
    ],
)
def test_audio_path(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: Any,
    subtype: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(InputError) as caught:
        save_audio(path, np.zeros(8, dtype=np.float32), 24_000, subtype=subtype)
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.wav"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("voice.npy", "path must end in .npz, got 'voice.npy'"),
        ("voice", "path must end in .npz, got 'voice'"),
        ("absent/voice.npz", "path must be in a folder that exists, got"),
        ("folder.npz", "path must name a file, got the folder"),
        (None, "path must be a file name, got None"),
    ],
)
def test_voice_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError) as caught:
        Voice(SHORT, SHORT[None], SHORT[None]).save(path)
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "size must be one of tiny, small, large, got 'huge'"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": True}, "seed must be an integer from 0"),
        ({"seed": 1.5}, "seed must be an integer from 0"),
        ({"seed": 2**64}, "seed must be an integer from 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16, got 'int8'"),
        ({"folder": ".."}, "folder must be new or empty, got '..'"),
        ({"folder": "file"}, "folder must be new or empty, got 'file'"),
        ({"folder": "file/below"}, "folder"),
        ({"folder": None}, "folder must be"),
    ],
)
def test_create_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("file").touch()
    with pytest.raises(InputError) as caught:
        create_checkpoint(**{"folder": "new", **arguments})
    assert message in str(caught.value)
    assert [p.name for p in Path().iterdir()] == ["file"]
