"""A checkpoint whose files are found, in whatever layout they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import StoredTensors, TensorsInFiles


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights have not been read yet.

    Attributes:
        source: its files, among them its voices.
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
    return Checkpoint(source, read_config(source), source, lambda: TensorsInFiles(source))
