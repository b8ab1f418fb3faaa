"""Checkpoints of random weights that never end a text, so that both sides make the same length."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bark_fast.checkpoint import reading
from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.random import create_checkpoint
from bark_fast.checkpoint.source import Source
from bark_fast.demo import FOLDER

DEMO = "demo"  # the size that is the voice in the package
_MADE_WITH = "made_by_bench.json"


def make_checkpoint(folder: Path, *, size: str, seed: int, dtype: str) -> Path:
    """Write a random checkpoint whose end token is never the most likely.

    Its row of the semantic head is zero, so its logit is zero at every step; the largest of ten
    thousand others, with signs at random, is above. That suppresses it for whoever reads the
    checkpoint, in the same way.
    """
    create_checkpoint(folder, size=size, seed=seed, dtype=dtype)
    rules = read_config(folder).semantic_rules
    _zero_row(folder / "model.safetensors", "semantic.lm_head.weight", rules.eos_token_id)
    (folder / _MADE_WITH).write_text(json.dumps({"size": size, "seed": seed}))
    return folder


@contextmanager
def checkpoint_for(folder: Path | None, *, size: str, seed: int, dtype: str) -> Iterator[Path]:
    """A checkpoint in `folder`, made if it is not there yet and kept; or if None, one for now.

    Of size `DEMO` it is the package's own.

    Raises:
        ValueError: the one in `folder` is of another size or seed, or not one of ours.
    """
    if size == DEMO:
        yield FOLDER
    elif folder is not None and folder.is_dir():
        marker = folder / _MADE_WITH
        made_with = json.loads(marker.read_text()) if marker.is_file() else None
        if made_with != {"size": size, "seed": seed}:
            raise ValueError(
                f"{folder} must hold a checkpoint made here with size {size!r} and seed {seed}, "
                f"got {made_with}"
            )
        yield folder
    elif folder is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            made = make_checkpoint(Path(partial) / "new", size=size, seed=seed, dtype=dtype)
            made.rename(folder)  # whole, or not at all
        yield folder
    else:
        with tempfile.TemporaryDirectory() as partial:
            yield make_checkpoint(Path(partial) / "new", size=size, seed=seed, dtype=dtype)


def read_config(folder: Path) -> Config:
    """Read the config of a checkpoint."""
    return reading.read_config(Source.open(folder, revision=None, local_files_only=True))


def _zero_row(path: Path, name: str, row: int) -> None:
    """Overwrite one row of a tensor in a safetensors file, where it stands."""
    with path.open("r+b") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        tensor = json.loads(file.read(header_length))[name]
        start, stop = tensor["data_offsets"]
        row_length = (stop - start) // tensor["shape"][0]
        assert row < tensor["shape"][0]
        file.seek(8 + header_length + start + row * row_length)
        file.write(bytes(row_length))
