"""Broken weights are our errors, which name the file or the tensor, and nothing is executed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bark_fast import CheckpointError
from bark_fast.checkpoint.config import CONFIG_FILE, GENERATION_FILE
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.weights import load_weights
from helpers.bad_files import Bomb, read_weights, zip_of
from helpers.checkpoints import Checkpoint

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
        read_weights(copy)
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
        ("pytorch_model.bin", zip_of(data=b"1"), "is not a whole file of plain tensors"),
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
        read_weights(copy)
    assert message in str(caught.value)
    assert file in str(caught.value)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_truncated_safetensors(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not a whole"):
        read_weights(copy)


@pytest.mark.parametrize("options", [{}, _OLD_FORMAT], ids=["zip", "old"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_bin(copy: Path, options: dict[str, Any], part: float) -> None:
    whole = _as_bin(load_file(copy / "model.safetensors"), **options)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is not a whole file"):
        read_weights(copy)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # from torch
@pytest.mark.parametrize("options", [{}, _OLD_FORMAT], ids=["zip", "old"])
def test_damaged_bin(tmp_path: Path, small: Checkpoint, options: dict[str, Any]) -> None:
    """Wherever a byte is wrong, it is our error."""
    shutil.copy(small.folder / CONFIG_FILE, tmp_path)
    shutil.copy(small.folder / GENERATION_FILE, tmp_path)
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
        read_weights(copy)
    assert not bait.exists()
    pickle.loads(pickle.dumps(content))
    assert bait.exists(), "the bait itself does not work"


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights found"):
        read_weights(copy)


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
    assert len(read_weights(copy)) > 100  # good before it is broken
    index.write_text(json.dumps({} if change is None else {"weight_map": weight_map | change}))
    with pytest.raises(CheckpointError) as caught:
        read_weights(copy)
    assert message in str(caught.value)
