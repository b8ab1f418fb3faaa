"""Standard streams that can be written to, whatever the program was started with.

A service, a job of cron or a child of a window system may have none (`None` in sys), closed ones,
or ones that nobody reads. What is said there is then lost, which is no reason to fail.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def forgiving(stream: Any) -> Any:
    """Return a stream to write to that never fails, whatever becomes of `stream`; None is one."""
    return _Forgiving(stream) if _is_open(stream) else Nowhere()


@contextmanager
def usable_streams() -> Iterator[None]:
    """Put streams that take everything in the place of sys.stdout and sys.stderr, meanwhile.

    Standard output that is there stays itself, because it fails for a reason: a full disk. It has
    no `buffer` if there is none.
    """
    _fill_descriptors()
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout = stdout if _is_open(stdout) else Nowhere()
    sys.stderr = forgiving(stderr)
    # Names of files need not be text, and the terminal's encoding need not have every character.
    strict = isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict"
    try:
        if strict:
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        yield
    finally:
        if strict and _is_open(stdout):
            stdout.reconfigure(errors="strict")  # type: ignore[union-attr]
        sys.stdout, sys.stderr = stdout, stderr


def drop_unwritten() -> None:
    """Drop what standard output could not take, which Python would try to write again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fill_descriptors() -> None:
    """Open the null device in the place of closed descriptors.

    Otherwise the next file that is opened gets their number, and what some library prints.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def _is_open(stream: Any) -> bool:
    return stream is not None and not stream.closed


class Nowhere(io.TextIOBase):
    """Takes text and keeps none."""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        return len(text)


class _Forgiving:
    """Writes to a stream as long as it can be written to, and then no more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # no reader, no room, or closed meanwhile
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
