"""Damaged and malicious files, for the tests of what users pass in."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.weights import load_weights

SHORT = np.arange(4)


def npz(**arrays: Any) -> bytes:
    """Return an .npz file of these arrays."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Return an .npy file of this array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_of_shape(*shape: int) -> bytes:
    """Return the head of an .npy file that promises an array of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<i8", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def zip_of(**members: bytes) -> bytes:
    """Return a zip archive of .npy files with these contents."""
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


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read and check everything that a checkpoint in transformers' layout holds."""
    source = Source.open(folder)
    return load_weights(
        TensorsInFiles(source), read_config(source), dtype=torch.float32, device=torch.device("cpu")
    )
