"""A checkpoint whose files are found, in whatever layout they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import StoredTensors, TensorsInFiles

PRESETS_FILE = "speaker_embeddings_path.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights have not been read yet.

    Attributes:
        source: where its voices are.
        config: its two configuration files, read and checked.
        tokenizer: the files of its tokenizer.
        tensors: finds the weights, under the names of transformers' BarkModel.
    """

    source: Source
    config: Config
    tokenizer: Source
    tensors: Callable[[], StoredTensors]


def open_transformers(source: Source) -> Checkpoint:
    """Open a checkpoint in transformers' layout, where everything lies together.

    Raises:
        CheckpointError: the configuration is missing or contradicts itself.
    """
    return Checkpoint(
        source.holding(PRESETS_FILE),
        read_config(source),
        source.holding(*TOKENIZER_FILES),
        lambda: TensorsInFiles(source),
    )
