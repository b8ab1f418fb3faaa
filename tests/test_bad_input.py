"""Whatever is wrong with what users pass in, they get one of our errors, and it names the culprit.

Checkpoints are broken one thing at a time, in a copy of the small one."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bark_fast import Bark, CheckpointError, GenerationParams, InputError
from bark_fast.audio import save_audio
from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.random import create_checkpoint
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.weights import load_weights
from bark_fast.cli import main
from bark_fast.devices import resolve_device, resolve_dtype
from bark_fast.types import Voice
from bark_fast.voices import VoiceLibrary, check_voice, open_voices
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


# Voices: arrays


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
        (_with("semantic_prompt", lambda a: a.astype(float)), "semantic_prompt must hold integers"),
        (_with("coarse_prompt", lambda a: a > 0), "coarse_prompt must hold integers, got bool"),
        (_with("coarse_prompt", lambda a: a.astype(str)), "coarse_prompt must hold integers"),
        (_with("coarse_prompt", lambda a: a.astype(object)), "must hold integers, got object"),
        (_with("fine_prompt", lambda a: [[1], [1, 2]]), "fine_prompt must be an array of integers"),
        (_with("fine_prompt", lambda a: torch.ones(5, 9, dtype=torch.bfloat16)), "fine_prompt"),
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
        (_with("fine_prompt", lambda a: a[:, :-1]), "as many frames as coarse_prompt (33), got 32"),
        (_frames(20), "coarse_prompt must have about 33 frames for 20 semantic tokens, got 20"),
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


@pytest.mark.parametrize(
    "name",
    ["nobody", "", "../secret", "/etc/passwd", "voice.npy", "speaker_embeddings_path.json", None],
)
def test_voice_names(small: Checkpoint, name: Any) -> None:
    with pytest.raises(InputError, match=r"^voice must (be a preset of this checkpoint|not be)"):
        small.bark.load_voice(name)


# Voices: files


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npy_of_shape(*shape: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<i8", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


class Bomb:
    """Unpickled, it creates the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


_SHORT = np.arange(4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "voice must be a file that exists, got"),
        (b"", "is not a whole .npz file of plain arrays"),
        (b"not a zip", "is not a whole .npz file of plain arrays"),
        (b"PK\x03\x04 broken", "is not a whole .npz file of plain arrays"),
        (_npy(_SHORT), "is not a whole .npz file of plain arrays"),
        (_npz(semantic_prompt=_SHORT)[:-40], "is not a whole .npz file of plain arrays"),
        (_npz(semantic_prompt=_SHORT), "coarse_prompt [2, *] is missing"),
        (_npz(other=_SHORT), "semantic_prompt [*] is missing"),
        (_zip(semantic_prompt=b"no array"), "semantic_prompt must hold integers, got |S8"),
        (_zip(semantic_prompt=_npy(_SHORT)[:-9]), "is not a whole .npz file of plain arrays"),
        (
            _zip(semantic_prompt=_npy_of_shape(10**15)),  # promises more than there is
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


# Voices: a checkpoint's own


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
    (folder / "archive.npz").write_bytes(_npz(fine_prompt=_SHORT))
    (folder / "empty.npy").write_bytes(b"")
    (folder / "short.npy").write_bytes(_npy(_SHORT)[:-9])
    np.save(tmp_path / "secret.npy", _SHORT)
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


# config.json and generation_config.json


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    source = Source.open(folder)
    return load_weights(
        TensorsInFiles(source), Config.read(source), dtype=torch.float32, device=torch.device("cpu")
    )


@pytest.fixture
def copy(small: Checkpoint, tmp_path: Path) -> Path:
    return shutil.copytree(small.folder, tmp_path / "copy")


_ABSENT = object()
_CONFIG, _GENERATION = "config.json", "generation_config.json"


def _edit(folder: Path, file: str, key: str, value: Any) -> None:
    content = json.loads((folder / file).read_text())
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section[name]
    if value is _ABSENT:
        del section[last]
    else:
        section[last] = value
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize("file", [_CONFIG, _GENERATION])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is not valid JSON"),
        (b'{"model_type": ', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "must hold a JSON object, got a list"),
        (b"null", "must hold a JSON object, got a NoneType"),
        (b"{}", "semantic_config must be a JSON object, got None"),
    ],
)
def test_config_files(copy: Path, file: str, content: bytes | None, message: str) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Config.read(Source.open(copy))
    assert message in str(caught.value)
    assert file in str(caught.value)


_SEMANTIC, _COARSE, _FINE = "semantic_config", "coarse_acoustics_config", "fine_acoustics_config"


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (_CONFIG, "model_type", "gpt2", "model_type must be \"bark\", got 'gpt2'"),
        (_CONFIG, _SEMANTIC, _ABSENT, "semantic_config must be a JSON object, got None"),
        (_CONFIG, "codec_config", "encodec", "codec_config must be a JSON object, got 'encodec'"),
        (_CONFIG, f"{_SEMANTIC}.num_layers", -2, "num_layers must be an integer >= 1, got -2"),
        (_CONFIG, f"{_COARSE}.num_layers", 2.0, "num_layers must be an integer >= 1, got 2.0"),
        (_CONFIG, f"{_FINE}.num_heads", True, "num_heads must be an integer >= 1, got True"),
        (_CONFIG, f"{_FINE}.bias", "no", "bias must be true or false, got 'no'"),
        (_CONFIG, f"{_SEMANTIC}.hidden_size", 50, "hidden_size must be a multiple of num_heads"),
        (_CONFIG, f"{_SEMANTIC}.block_size", 100, "max_input_semantic_length + max_new_tokens"),
        (_CONFIG, f"{_SEMANTIC}.input_vocab_size", 90, "text_encoding_offset must be below"),
        (_CONFIG, f"{_SEMANTIC}.output_vocab_size", 100, "eos_token_id must be below"),
        (_CONFIG, f"{_COARSE}.input_vocab_size", 231, "coarse_infer_token must be below"),
        (_CONFIG, f"{_COARSE}.output_vocab_size", 200, "coarse_acoustics_config.output_vocab_size"),
        (_CONFIG, f"{_COARSE}.block_size", 100, "max_coarse_input_length + max_coarse_history"),
        (_CONFIG, f"{_FINE}.n_codes_total", 4, "n_fine_codebooks must be at most"),
        (_CONFIG, f"{_FINE}.n_codes_given", 3, "n_codes_given must be at most"),
        (_CONFIG, f"{_FINE}.input_vocab_size", 64, "codebook_size must be below"),
        (_CONFIG, f"{_FINE}.block_size", 63, "max_fine_input_length must be at most"),
        (_CONFIG, "codec_config.codebook_size", 63, "codec_config"),
        (_CONFIG, "codec_config.codebook_dim", 8, "codec_config"),
        (_CONFIG, "codec_config.audio_channels", 2, "audio_channels must be 1, got 2"),
        (_CONFIG, "codec_config.upsampling_ratios", [4, 0], "codec_config"),
        (_CONFIG, "codec_config.upsampling_ratios", "fast", "codec_config"),
        (_CONFIG, "codec_config.num_filters", -1, "codec_config"),
        (_CONFIG, "codec_config.num_lstm_layers", 0, "codec_config"),
        (_CONFIG, "codec_config.compress", 0, "codec_config"),
        (_GENERATION, _FINE, [], "fine_acoustics_config must be a JSON object, got []"),
        (_GENERATION, "codebook_size", 0, "codebook_size must be an integer >= 1, got 0"),
        (_GENERATION, "sample_rate", "24k", "sample_rate must be an integer >= 1, got '24k'"),
        (_GENERATION, f"{_SEMANTIC}.semantic_vocab_size", 101, "semantic_vocab_size must be at"),
        (_GENERATION, f"{_SEMANTIC}.text_pad_token", 1100, "text_pad_token must be below"),
        (_GENERATION, f"{_SEMANTIC}.semantic_rate_hz", 0, "semantic_rate_hz must be a number"),
        (_GENERATION, f"{_SEMANTIC}.temperature", -1, "temperature must be a number at least 0"),
        (_GENERATION, f"{_SEMANTIC}.temperature", float("nan"), "temperature must be a number"),
        (_GENERATION, f"{_COARSE}.temperature", 10**400, "temperature must be a number"),
        (_GENERATION, f"{_FINE}.temperature", "hot", "temperature must be a number"),
        (_GENERATION, f"{_SEMANTIC}.min_eos_p", 2, "min_eos_p must be a number at least 0 and at"),
        (_GENERATION, f"{_SEMANTIC}.do_sample", 1, "do_sample must be true or false, got 1"),
        (_GENERATION, f"{_COARSE}.top_k", -1, "top_k must be an integer >= 0, got -1"),
        (_GENERATION, f"{_COARSE}.top_p", 0, "top_p must be a number above 0 and at most 1"),
        (_GENERATION, f"{_SEMANTIC}.repetition_penalty", 1.2, "repetition_penalty is not supp"),
        (_GENERATION, f"{_COARSE}.num_beams", 2, "num_beams is not supported (leave it out)"),
        (_GENERATION, f"{_COARSE}.suppress_tokens", [1], "suppress_tokens is not supported"),
        (_GENERATION, f"{_COARSE}.sliding_window_len", 13, "sliding_window_len must be a multiple"),
        (_GENERATION, f"{_COARSE}.coarse_rate_hz", 1e6, "semantic_to_coarse_ratio"),
        (_GENERATION, f"{_COARSE}.n_coarse_codebooks", 5, "n_coarse_codebooks"),
        (_GENERATION, f"{_FINE}.n_fine_codebooks", 2, "n_coarse_codebooks must be below"),
        (_GENERATION, f"{_FINE}.max_fine_history_length", 64, "max_fine_history_length must be"),
    ],
)
def test_config_values(copy: Path, file: str, key: str, value: Any, message: str) -> None:
    _edit(copy, file, key, value)
    with pytest.raises(CheckpointError) as caught:
        _read_weights(copy)  # EnCodec's own classes find some things only when they are built
    assert message in str(caught.value)


# Weights


_TENSOR = "coarse_acoustics.layers.1.mlp.in_proj.weight"
_DIRECTION = "codec_model.decoder.layers.0.conv.parametrizations.weight.original1"
_HEAD = "fine_acoustics.lm_heads.0.weight"


def _drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.pop(name)  # type: ignore[return-value]


def _put(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: change(tensors.get(name))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop(_TENSOR), f"tensor {_TENSOR} [192, 48] is missing"),
        (_drop(_DIRECTION), "tensor codec_model.decoder.layers.0.conv.weight [8, 16, 7] is missi"),
        (_drop("semantic.lm_head.weight"), "tensor semantic.lm_head.weight [128, 48] is missing"),
        (
            _put("semantic.layers.2.mlp.in_proj.weight", lambda _: torch.zeros(192, 48)),
            "hold semantic.layers.2.mlp.in_proj.weight, which the config does not ask for",
        ),
        (_put("extra", lambda _: torch.zeros(1)), "hold extra, which the config does not ask for"),
        (
            _put(_TENSOR, lambda t: t.T.contiguous()),
            f"tensor {_TENSOR} must have shape [192, 48], got [48, 192]",
        ),
        (_put(_TENSOR, lambda t: t[0].clone()), "must have shape [192, 48], got [48]"),
        (_put(_DIRECTION, lambda t: t[:, :, :3].contiguous()), f"{_DIRECTION} must have shapes"),
        (_put(_TENSOR, lambda t: t.int()), f"tensor {_TENSOR} must be floating point, got"),
        (_put(_DIRECTION, lambda t: t.int()), f"tensor {_DIRECTION} must be floating point, got"),
        (_put(_HEAD, lambda _: torch.zeros(72, 48)), f"{_HEAD} differs from fine_acoustics.input"),
        (_put(_HEAD, lambda _: torch.zeros(7, 48)), f"tensor {_HEAD} must have shape [72, 48]"),
    ],
)
def test_tensors(
    copy: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    tensors = load_file(copy / "model.safetensors")
    assert _DIRECTION in tensors
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        _read_weights(copy)
    assert message in str(caught.value)


def _as_bin(tensors: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file, **options)
    return file.getvalue()


_OLD_FORMAT = {"_use_new_zipfile_serialization": False}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # from torch
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"", "is not a whole safetensors file"),
        ("model.safetensors", b"garbage" * 9, "is not a whole safetensors file"),
        ("pytorch_model.bin", b"", "is not a whole file of plain tensors"),
        ("pytorch_model.bin", b"garbage" * 9, "is not a whole file of plain tensors"),
        ("pytorch_model.bin", b"\x80\x02", "is not a whole file of plain tensors"),
        ("pytorch_model.bin", b"PK\x03\x04" * 9, "is not a whole file of plain tensors"),
        ("pytorch_model.bin", _zip(data=b"1"), "is not a whole file of plain tensors"),
        (
            "pytorch_model.bin",
            _as_bin({"a": torch.zeros(999)}, **_OLD_FORMAT)[:-50],
            "is not a whole file of plain tensors",
        ),
        (
            "pytorch_model.bin",
            _as_bin({"a": torch.zeros(999)})[:-50],
            "is not a whole file of plain tensors",
        ),
        ("pytorch_model.bin", _as_bin([torch.zeros(1)]), "must hold a mapping of names to tensors"),
        ("pytorch_model.bin", _as_bin({"a": 1}), "must hold a mapping of names to tensors"),
        ("pytorch_model.bin", _as_bin({1: torch.zeros(1)}), "must hold a mapping of names to"),
        ("pytorch_model.bin", pickle.dumps({"a": 1}), "is not a whole file of plain tensors"),
        (
            "pytorch_model.bin",
            _as_bin({"state_dict": {"a": torch.zeros(1)}}),
            "must hold a mapping of names to tensors",
        ),
    ],
)
def test_weight_files(copy: Path, file: str, content: bytes, message: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / file).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        _read_weights(copy)
    assert message in str(caught.value)
    assert file in str(caught.value)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_truncated_safetensors(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not a whole"):
        _read_weights(copy)


@pytest.mark.parametrize("options", [{}, _OLD_FORMAT], ids=["zip", "old"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_bin(copy: Path, options: dict[str, Any], part: float) -> None:
    whole = _as_bin(load_file(copy / "model.safetensors"), **options)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is not a whole file"):
        _read_weights(copy)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # from torch
@pytest.mark.parametrize("options", [{}, _OLD_FORMAT], ids=["zip", "old"])
def test_damaged_bin(tmp_path: Path, small: Checkpoint, options: dict[str, Any]) -> None:
    """Wherever a byte is wrong, it is our error."""
    shutil.copy(small.folder / _CONFIG, tmp_path)
    shutil.copy(small.folder / _GENERATION, tmp_path)
    whole = _as_bin({"a": torch.zeros(3), "b": torch.ones(2)}, **options)
    rng = np.random.default_rng(0)
    source, config = Source.open(tmp_path), small.config
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=3):
            damaged[at] = rng.integers(256)
        (tmp_path / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_weights(
                TensorsInFiles(source), config, dtype=torch.float32, device=torch.device("cpu")
            )


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # from torch
@pytest.mark.parametrize("how", ["torch", "torch old", "pickle"])
def test_malicious_pickle_is_not_executed(copy: Path, tmp_path: Path, how: str) -> None:
    bait = tmp_path / "executed"
    content = {"a": Bomb(bait)}
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(
        pickle.dumps(content)
        if how == "pickle"
        else _as_bin(content, **(_OLD_FORMAT if "old" in how else {}))
    )
    with pytest.raises(CheckpointError, match="is not a whole file of plain tensors"):
        _read_weights(copy)
    assert not bait.exists()
    pickle.loads(pickle.dumps(content))
    assert bait.exists(), "the bait itself does not work"


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights found"):
        _read_weights(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({_TENSOR: "absent.safetensors"}, "absent.safetensors is missing"),
        ({_TENSOR: "../a.safetensors"}, "file name must stay in the folder"),
        ({_TENSOR: "b.safetensors"}, f"says that b.safetensors holds {_TENSOR}; it does not"),
        ({"ghost": "a.safetensors"}, "says that a.safetensors holds ghost; it does not"),
        ({_TENSOR: 5}, "weight_map must map tensors to files"),
        (None, "weight_map must map tensors to files"),
    ],
)
def test_shard_index(copy: Path, change: dict[str, Any] | None, message: str) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weight_map: dict[str, Any] = {}
    for shard, part in (("a", True), ("b", False)):
        held = {n: t for n, t in tensors.items() if (n < "coarse_acoustics.m") == part}
        save_file(held, copy / f"{shard}.safetensors")
        weight_map |= dict.fromkeys(held, f"{shard}.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert len(_read_weights(copy)) > 100  # good before it is broken
    index.write_text(json.dumps({} if change is None else {"weight_map": weight_map | change}))
    with pytest.raises(CheckpointError) as caught:
        _read_weights(copy)
    assert message in str(caught.value)


# Tokenizers


def test_no_tokenizer(copy: Path) -> None:
    (copy / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer found \(tokenizer\.json or vocab"):
        Bark.from_pretrained(copy, device="cpu")


def test_broken_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot load its tokenizer"):
        Bark.from_pretrained(copy, device="cpu")


def test_tokenizer_beyond_the_model(copy: Path) -> None:
    words = (copy / "vocab.txt").read_text(encoding="utf-8").splitlines()
    filler = [f"filler{i}" for i in range(1000)]
    (copy / "vocab.txt").write_text("\n".join([*words[:5], *filler, *words[5:]]), encoding="utf-8")
    bark = Bark.from_pretrained(copy, device="cpu")
    with pytest.raises(CheckpointError, match="room for 999 text tokens"):
        bark.generate("Hello", params=QUICK)


# Files written


@pytest.mark.parametrize(
    ("path", "subtype", "message"),
    [
        ("speech.mp3", None, "path must end in .wav or .flac, got"),
        ("speech", None, "path must end in .wav or .flac, got"),
        (".wav", None, "path must end in .wav or .flac, got"),
        ("speech.wav", "PCM_8", "subtype must be one of PCM_16, PCM_24, FLOAT for .wav, got"),
        ("speech.flac", "FLOAT", "subtype must be one of PCM_16, PCM_24 for .flac, got 'FLOAT'"),
        ("speech.wav", 16, "subtype must be one of PCM_16, PCM_24, FLOAT for .wav, got 16"),
        ("absent/speech.wav", None, "path must be in a folder that exists, got"),
        ("folder.wav", None, "path must name a file, got the folder"),
        (None, None, "path must be a file name, got None"),
        (3, None, "path must be a file name, got 3"),
        (b"speech.wav", None, "path must be a file name, got b'speech.wav'"),
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
        Voice(_SHORT, _SHORT[None], _SHORT[None]).save(path)
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


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["say"], "TEXT"),
        (["say", "Hi", "--loud"], "--loud"),
        (["say", "Hi", "--temp", "1"], "--temp"),  # no guessing of abbreviations
        (["say", ""], "TEXT must not be empty"),
        (["say", " \n"], "TEXT must not be empty"),
        (["say", "-"], "TEXT must not be empty"),
        (["say", "Hi \udcff"], "text must be valid Unicode"),
        (["say", "\u200b"], "text must hold something the tokenizer knows"),
        (["say", "Hi", "-o", "speech.mp3"], "--output must end in .wav or .flac"),
        (["say", "Hi", "-o", "absent/a.wav"], "--output must be in a folder that exists"),
        (["say", "Hi", "--subtype", "PCM_8"], "subtype must be one of"),
        (["say", "Hi", "-o", "a.flac", "--subtype", "FLOAT"], "subtype must be one of"),
        (["say", "Hi", "--save-voice", "me.wav"], "--save-voice must end in .npz"),
        (["say", "Hi", "--save-voice", "absent/me.npz"], "--save-voice must be in a folder"),
        (["say", "Hi", "--pause", "-1"], "--pause must be from 0 to 60 seconds, got -1"),
        (["say", "Hi", "--pause", "nan"], "--pause must be from 0 to 60 seconds, got nan"),
        (["say", "Hi", "--pause", "long"], "--pause: invalid float value: 'long'"),
        (["say", "Hi", "--temperature", "-1"], "temperature must be a finite number >= 0"),
        (["say", "Hi", "--temperature", "nan"], "temperature must be a finite number >= 0"),
        (["say", "Hi", "--coarse-top-k", "2.5"], "--coarse-top-k: invalid int value: '2.5'"),
        (["say", "Hi", "--top-p", "0"], "top_p must be a number above 0, at most 1, got 0.0"),
        (["say", "Hi", "--seed", "-1"], "seed must be an integer from 0 to 2**64 - 1, got -1"),
        (["say", "Hi", "--max-duration-s", "1e-6"], "max_duration_s must allow at least one"),
        (["say", "Hi", "--voice", "nobody"], "voice must be a preset of this checkpoint"),
        (["say", "Hi", "--voice", "absent.npz"], "voice must be a file that exists"),
        (["say", "Hi", "--language", "e n"], "language must be a code"),
        (["say", "Hi", "--device", "tpu"], "device must be"),
        (["say", "Hi", "--dtype", "int4"], "dtype must be"),
        (["say", "Hi", "-q", "--progress"], "not allowed with argument"),
        (["say", "Hi", "--model", "absent"], "model must be a folder that exists or a hub id"),
        (["say", "Hi", "--model", "empty"], "config.json is missing"),
        (["voices", "--model", "absent"], "model must be a folder that exists or a hub id"),
        (["voices", "--model", "empty"], "config.json is missing"),
        (["info", "more"], "unrecognized arguments: more"),
        (["new-checkpoint"], "DIR"),
        (["new-checkpoint", "full"], "folder must be new or empty, got 'full'"),
        (["new-checkpoint", "new", "--size", "huge"], "size must be one of"),
        (["new-checkpoint", "new", "--dtype", "int4"], "dtype must be one of"),
        (["new-checkpoint", "new", "--seed", "x"], "--seed: invalid int value: 'x'"),
        (["new-checkpoint", "new", "--seed", "-5"], "seed must be an integer from 0"),
    ],
    ids=lambda x: " ".join(x).encode("ascii", "replace").decode() if isinstance(x, list) else "",
)
def test_command(
    small: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    if arguments[:1] == ["say"] and "--model" not in arguments:
        arguments = [*arguments, "--model", str(small.folder)]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bark-fast: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_command_with_undecodable_input(
    small: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["say", "-", "--model", str(small.folder)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("bark-fast: error: standard input must be text in utf-8")
    assert not list(tmp_path.iterdir())
