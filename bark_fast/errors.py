"""The errors and the warning that this library raises on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class BarkFastError(Exception):
    """The base of every error that this library raises on purpose."""


class InputError(BarkFastError, ValueError):
    """An argument is not what it must be; the message names it, the requirement and the value."""


class GenerationError(BarkFastError):
    """Some utterances of a list failed.

    Attributes:
        results: for each text, in order, its Speech or the error that it failed with.
    """

    def __init__(self, results: Sequence[Any]) -> None:
        self.results: list[Any] = list(results)
        errors = [(i, r) for i, r in enumerate(self.results) if isinstance(r, Exception)]
        index, first = errors[0]
        super().__init__(
            f"{len(errors)} of {len(self.results)} utterances failed; text {index}: {first!r} "
            "(results holds the others)"
        )


class QueueFullError(BarkFastError):
    """More utterances would wait than an AsyncBark was allowed."""


class ClosedError(BarkFastError):
    """An AsyncBark was closed: it takes no more requests, and gave up those that were under way."""


class ProcessError(BarkFastError, RuntimeError):
    """Something was used in, or sent to, another process than the one that it belongs to."""


class CheckpointError(BarkFastError, ValueError):
    """A checkpoint cannot be used; the message names the file, and the key or tensor."""


class BarkFastWarning(UserWarning):
    """Something was done differently from what was asked; the message says what and why."""
