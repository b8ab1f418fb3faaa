"""A wrong file in the place of any file of a checkpoint is our error, which says what it is."""

from __future__ import annotations

import io
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bark_fast import (
    Bark,
    BarkFastError,
    BarkFastWarning,
    CheckpointError,
    GenerationParams,
    InputError,
    Voice,
)
from bark_fast.checkpoint.opening import open_checkpoint
from bark_fast.checkpoint.random import PRESET_NAMES, create_checkpoint
from bark_fast.checkpoint.unreadable import in_one_line
from bark_fast.checkpoint.weights import load_weights
from bark_fast.request import RequestBuilder
from helpers.bad_files import Bomb, npz
from helpers.checkpoints import Checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
ADVICE = ("weights_only", "allow_pickle", "trust_remote_code", "torch.load", "np.load")
WRONG = {
    "a Git LFS pointer": (POINTER, "it is a Git LFS pointer"),
    "a git-annex pointer": (b"/annex/objects/MD5E-s1--0.bin\n", "it is a git-annex pointer"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "it is an HTML page"),
    "a bare web page": (b"<html lang=en><title>404</title>", "it is an HTML page"),
    "a refusal": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML document"),
    "nothing": (b"", "it is empty"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with presets, its weights in both formats, and a voice in a file."""
    folder = create_checkpoint(tmp_path_factory.mktemp("wrong") / "tiny")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    # Links, because files are replaced and never written to.
    return Path(shutil.copytree(tiny, tmp_path / "copy", copy_function=_link))


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _load_all(folder: Path) -> None:
    """Read everything that a checkpoint holds, as `Bark.from_pretrained` and its voices do."""
    checkpoint = open_checkpoint(folder)
    requests = RequestBuilder.of(checkpoint)
    requests.tokenizer.encode("Hello")
    for name in requests.voices.names:
        requests.voices.get(name)
    cpu = torch.device("cpu")
    load_weights(checkpoint.tensors(), checkpoint.config, dtype=torch.float32, device=cpu)


def _complaint(call: Callable[[], Any]) -> str | None:
    """Return what our error says, None if there is none; any other error goes through."""
    try:
        with warnings.catch_warnings():
            # A text or a vocabulary of any kind may be one that does not know the other.
            warnings.simplefilter("ignore", BarkFastWarning)
            call()
    except BarkFastError as error:
        return str(error)
    return None


FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "pytorch_model.bin",
    "vocab.txt",
    "tokenizer_config.json",
    "speaker_embeddings_path.json",
    f"speaker_embeddings/{PRESET_NAMES[0]}_semantic_prompt.npy",
    f"speaker_embeddings/{PRESET_NAMES[0]}_fine_prompt.npy",
]


def _only(folder: Path, file: str) -> Path:
    """Take away what would be read instead of `file`, and return its path."""
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    found = next(folder.rglob(Path(file).name), None)
    return folder / file if found is None else found


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("file", FILES)
def test_what_it_is_instead(copy: Path, file: str, kind: str) -> None:
    content, words = WRONG[kind]
    path = _only(copy, file)
    _replace(path, content)
    with pytest.raises(CheckpointError) as caught:
        _load_all(copy)
    assert path.name in str(caught.value)
    assert words in str(caught.value)
    assert not any(advice in str(caught.value) for advice in ADVICE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", WRONG)
def test_a_voice_file_that_is_something_else(small: Checkpoint, tmp_path: Path, kind: str) -> None:
    content, words = WRONG[kind]
    (tmp_path / "me.npz").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        small.bark.load_voice(tmp_path / "me.npz")
    assert not any(advice in str(caught.value) for advice in ADVICE)


@pytest.mark.parametrize("file", FILES)
def test_damage_of_any_kind(copy: Path, file: str) -> None:
    """Truncated, mixed up, or another file of the same checkpoint: it loads or is our error."""
    rng = random.Random(file)
    path = _only(copy, file)
    whole = path.read_bytes()
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(4)]
    damaged += [bytes(rng.randrange(256) for _ in range(300)), whole[::-1][:10_000], b"\0" * 99]
    damaged += [b"[]", b"null", b'{"a": {}}', b"1" * 5000, b'"' + b"\\ud800" + b'"', b"\xff\xfe{}"]
    damaged += [npz(semantic_prompt=np.arange(3)), (copy / "config.json").read_bytes()]
    refused = 0
    for content in damaged:
        _replace(path, content)
        message = _complaint(lambda: _load_all(copy))
        refused += message is not None
        assert not any(advice in (message or "") for advice in ADVICE)
    assert refused > len(damaged) // 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b'{"tokenizer_class": 7}'),
        ("tokenizer_config.json", b'{"tokenizer_class": "NobodysTokenizer"}'),
        (
            "tokenizer_config.json",
            b'{"auto_map": {"AutoTokenizer": ["mine.Mine", null]}, "tokenizer_class": "Mine"}',
        ),
        ("added_tokens.json", b"[1]"),
        ("special_tokens_map.json", b"{"),
    ],
)
def test_tokenizers(copy: Path, file: str, content: bytes) -> None:
    _replace(copy / file, content)
    message = _complaint(lambda: _load_all(copy))
    assert not any(advice in (message or "") for advice in ADVICE)
    assert message is not None or file != "vocab.txt"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "voice.npz"])
def test_pickled_objects_are_refused_without_advice(
    small: Checkpoint, copy: Path, tmp_path: Path, name: str
) -> None:
    path = _only(copy, name)
    if name == "voice.npz":
        objects = np.array([Bomb(tmp_path / "bait")], dtype=object)
        np.savez(path, semantic_prompt=objects)
        with pytest.raises(InputError) as caught:
            small.bark.load_voice(path)
    else:
        path.unlink()
        torch.save({"a": Bomb(tmp_path / "bait")}, path)
        with pytest.raises(CheckpointError) as caught:  # type: ignore[assignment]
            _load_all(copy)
    assert "it holds Python objects" in str(caught.value)
    assert not any(advice in str(caught.value) for advice in ADVICE)
    assert not (tmp_path / "bait").exists()


def test_sparse_weights(copy: Path) -> None:
    path = _only(copy, "pytorch_model.bin")
    tensors = torch.load(path, weights_only=True)
    tensors["semantic.lm_head.weight"] = tensors["semantic.lm_head.weight"].to_sparse()
    path.unlink()
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=r"semantic\.lm_head\.weight must be a dense one"):
        _load_all(copy)


# The hub


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_what_was_not_downloaded(tmp_path: Path, monkeypatch: Any, tiny: Path, by: str) -> None:
    """Of a repository that is cached in part, each missing file is said to be not downloaded."""
    cached: list[str] = []

    def download(name: str, file: str, *, local_files_only: bool, **_: Any) -> str:
        assert local_files_only
        if file in cached:
            return str(tiny / file)
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    if by == "environment":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for file, message in (
        ("config.json", "config.json is missing from what was downloaded before"),
        ("generation_config.json", "generation_config.json is missing from what was downloaded"),
        ("vocab.txt", "no tokenizer found .* from what was downloaded before"),
        ("model.safetensors", "no weights found .* from what was downloaded before"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Bark.from_pretrained("a/b", device="cpu", local_files_only=by == "argument")
        cached.append(file)
    Bark.from_pretrained("a/b", device="cpu", local_files_only=by == "argument")


# Arguments of any type

_SMALL = st.one_of(st.none(), st.integers(), st.text(max_size=3))
_OTHERS = [
    object(),
    len,
    np.zeros((2, 2)),
    torch.zeros(3),
    torch.zeros(2, device="meta"),
    Path("x" * 300 + ".npz"),
    "x" * 5000 + ".npz",
    "\0.npz",
]
_THINGS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.binary(max_size=4),
    st.text(max_size=300),
    st.lists(_SMALL, max_size=3),
    st.dictionaries(st.text(max_size=3), _SMALL, max_size=2),
    *map(st.just, _OTHERS),
)
_QUICK = GenerationParams(max_semantic_tokens=1, seed=0)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@example(thing="~\0", which=7)
@example(thing="~\ud800", which=7)
@given(thing=_THINGS, which=st.integers(0, 11))
def test_arguments_of_any_type(small: Checkpoint, thing: Any, which: int) -> None:
    bark = small.bark
    calls: list[Callable[[], Any]] = [
        lambda: bark.request(thing, None, _QUICK),
        lambda: bark.requests.from_texts(thing, None, _QUICK),
        lambda: bark.requests.from_texts(["a", "b"], thing, _QUICK),
        lambda: bark.requests.from_texts("a", None, thing),
        lambda: bark.requests.from_token_lists(thing, None, _QUICK),
        lambda: bark.load_voice(thing),
        lambda: bark.load_voice({"semantic_prompt": thing}),
        lambda: Bark.from_pretrained(thing, device="cpu", local_files_only=True),
        lambda: bark.stream_plan("a", None, None, thing),
        lambda: bark.split("a", max_tokens=thing),
        lambda: GenerationParams(seed=thing, top_p=thing),
        lambda: bark.submit(thing),
    ]
    assert _complaint(calls[which]) != ""


def test_a_path_of_bytes(small: Checkpoint) -> None:
    class OfBytes:
        def __fspath__(self) -> Any:
            return b"voice.npz"

    for call in (small.bark.load_voice, Bark.from_pretrained):
        with pytest.raises(InputError, match="must be a path of text"):
            call(OfBytes())  # type: ignore[operator]


def test_a_voice_that_numpy_would_pickle(small: Checkpoint, tmp_path: Path) -> None:
    good = small.bark.load_voice(small.voice(20))
    for bad in (None, np.array([object()]), np.array([1.5])):
        voice = Voice(bad, good.coarse_prompt, good.fine_prompt)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="semantic_prompt"):
            voice.save(tmp_path / "me.npz")
    assert not list(tmp_path.iterdir())


def test_one_line() -> None:
    assert in_one_line(ValueError()) == "ValueError"
    assert in_one_line(ValueError("a\nb")) == "a"
    assert in_one_line(PermissionError(13, "Permission denied", "x")) == "Permission denied"
    with pytest.raises(ValueError) as caught:
        np.load(io.BytesIO(b"no array"))
    assert in_one_line(caught.value).startswith("it holds Python objects, which are not read")
    advice = RuntimeError("set weights_only=False")
    assert in_one_line(advice) == "it is damaged, or of another kind"
