"""Run an object in a separate process, with separate memory."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class WorkerError(RuntimeError):
    """Raised if a call failed in the other process; the message holds its traceback."""


class Worker:
    """Calls methods of an object that lives in another process.

    The constructor does not wait until the object is made, so several workers can start at the same
    time. If making it failed, `wait` or the first call raises the error.

    Args:
        make: an importable function or class that makes the object.
        arguments: the keyword arguments of `make`.
    """

    def __init__(self, make: Callable[..., Any], **arguments: Any) -> None:
        # A fresh interpreter: a fork would share memory, and cannot use CUDA.
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, make, arguments), daemon=True, name=make.__name__
        )
        self._process.start()
        other.close()
        self._ready = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the object and return its result.

        Raises:
            WorkerError: the method raised an error, or the process died.
        """
        self.wait()
        self._connection.send((method, args, kwargs))
        return self._receive()

    def wait(self) -> None:
        """Wait until the object is made.

        Raises:
            WorkerError: the object could not be made.
        """
        if not self._ready:
            self._receive()
            self._ready = True

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            succeeded, result = self._connection.recv()
        except EOFError:
            self._process.join(timeout=5)
            name, code = self._process.name, self._process.exitcode
            raise WorkerError(f"the process of {name} died with exit code {code}") from None
        if not succeeded:
            raise WorkerError(result)
        return result


def _serve(connection: Connection, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Make the object, then answer calls until the other end is closed."""
    try:
        made = make(**arguments)
    except Exception:
        connection.send((False, traceback.format_exc()))
        return
    connection.send((True, None))
    while True:
        try:
            method, args, kwargs = connection.recv()
        except EOFError:  # the other end was closed: this process is no longer needed
            return
        try:
            answer = (True, getattr(made, method)(*args, **kwargs))
        except Exception:
            answer = (False, traceback.format_exc())
        connection.send(answer)
