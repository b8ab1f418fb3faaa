"""What is known of a checkpoint once its files are found, in whatever layout they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import StoredTensors, TensorsInFiles


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights have not been read yet.

    Attributes:
        source: where it lies, and its voices with it.
        config: what it says of itself.
        tokenizer: where the tokenizer's files are.
        tensors: finds the weights, under the names of transformers' BarkModel.
    """

    source: Source
    config: Config
    tokenizer: Source
    tensors: Callable[[], StoredTensors]


def open_transformers(source: Source) -> Checkpoint:
    """A checkpoint in transformers' layout, where everything lies together.

    Raises:
        CheckpointError: the configuration is missing or contradicts itself.
    """
    return Checkpoint(source, Config.read(source), source, lambda: TensorsInFiles(source))
