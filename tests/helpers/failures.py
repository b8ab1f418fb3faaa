"""Errors of other libraries, and a function that fails, for processes that import it by name.

(A spawned process may find another package `tests`, so it cannot import from a test's module.)
"""

from __future__ import annotations

import threading

from bark_fast import GenerationError, InputError


class HoldsALockError(Exception):
    """An error of another library: it cannot be pickled, and its constructor wants a keyword."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.lock, self.code = threading.Lock(), code


class TakesAKeywordError(Exception):
    """Pickles, and fails to come back."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(f"{message} ({code})")


def fail(kind: str) -> None:
    """Raise one of our errors: a list's, or another with a cause that cannot be pickled."""
    if kind == "list":
        raise GenerationError([None, InputError("text must not be empty")])
    raise InputError(kind) from HoldsALockError("inner", code=1)
