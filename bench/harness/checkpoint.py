"""Make checkpoints of random weights that never end a text.

So bark-fast and transformers make the same length of it.
"""

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

DEMO = "demo"  # where a size is asked for, it stands for the voice in the package
_MADE_WITH = "made_by_bench.json"


def make_checkpoint(folder: Path, *, size: str, seed: int, dtype: str) -> Path:
    """Write a random checkpoint whose end token is never the most likely.

    The end token's row of the semantic head is zero, so its logit is zero at every step, and the
    largest of the ten thousand others, whose signs are random, is above zero. This suppresses the
    token in the same way for every program that reads the checkpoint.
    """
    create_checkpoint(folder, size=size, seed=seed, dtype=dtype)
    rules = read_config(folder).semantic_rules
    _zero_row(folder / "model.safetensors", "semantic.lm_head.weight", rules.eos_token_id)
    (folder / _MADE_WITH).write_text(json.dumps({"size": size, "seed": seed}))
    return folder


@contextmanager
def checkpoint_for(folder: Path | None, *, size: str, seed: int, dtype: str) -> Iterator[Path]:
    """Provide the checkpoint in `folder`, making it first if it is not there yet.

    A checkpoint in `folder` is kept. If `folder` is None, a temporary one is made, and deleted at
    the end. The size `DEMO` stands for the checkpoint in the package.

    Raises:
        ValueError: the checkpoint in `folder` has another size or seed, or was not made here.
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
    """Overwrite one row of a tensor in a safetensors file with zeros, in place."""
    with path.open("r+b") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        tensor = json.loads(file.read(header_length))[name]
        start, stop = tensor["data_offsets"]
        row_length = (stop - start) // tensor["shape"][0]
        assert row < tensor["shape"][0]
        file.seek(8 + header_length + start + row * row_length)
        file.write(bytes(row_length))
