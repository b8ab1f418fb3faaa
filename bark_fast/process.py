"""What belongs to one process, and what a fork of that process may do with it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import NoReturn

import torch

from bark_fast import kernels  # its own hook for forks comes before the one below
from bark_fast.errors import ProcessError


class HomeProcess:
    """Remembers the process that something was made in, and refuses another.

    A fork copies memory and the thread that forks: what other threads were doing is never finished
    in it, and their locks stay locked. Where nothing was under way a fork can be a new home.

    Args:
        owner: what it is, in the error message.
        is_idle: returns True if a copy made at this moment could be used. It is called in the
            process that forked off, and must not wait. None: it never could.
    """

    def __init__(self, owner: str, is_idle: Callable[[], bool] | None = None) -> None:
        self._owner = owner
        self._process = os.getpid()
        # Weak, where it is a method: this belongs to the object whose method it is.
        self._is_idle = weakref.WeakMethod(is_idle) if is_idle is not None else None
        _homes.add(self)

    def check(self) -> None:
        """Check that this is the process.

        Raises:
            ProcessError: it is another.
        """
        if os.getpid() != self._process:
            raise ProcessError(
                f"{self._owner} must be used in the process that made it, {self._process}, got "
                f"{os.getpid()}: a fork of it while it was busy, on a GPU, or made by other means "
                'than Python\'s; load after the fork, or start processes with "spawn"'
            )

    def move_in(self) -> None:
        """Take this process, which has just forked off, for a new home if that can be."""
        is_idle = None if self._is_idle is None else self._is_idle()
        if is_idle is not None and is_idle() and kernels.survives_fork():
            self._process = os.getpid()


_homes: weakref.WeakSet[HomeProcess] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for home in list(_homes):
        home.move_in()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


def check_fork(device_type: str) -> None:
    """Check that models can compute in this process, should it be a fork of another.

    Raises:
        ProcessError: they would fail, or wait for ever.
    """
    if device_type == "cuda":
        forked = torch.cuda._is_in_bad_fork()
        reason, way = "CUDA was in use in the process that it is a fork of", ""
    else:
        forked = not kernels.survives_fork()
        reason = "torch would wait for the OpenMP threads of the process that it is a fork of"
        way = ", or let torch run on one thread (OMP_NUM_THREADS=1)"
    if forked:
        raise ProcessError(
            f"no model can be loaded in process {os.getpid()}, because {reason}: start processes "
            f'with "spawn"{way}'
        )


def refuse_to_pickle(owner: str) -> NoReturn:
    """Raise the error for what cannot be sent to another process.

    Raises:
        ProcessError: always.
    """
    raise ProcessError(
        f"{owner} cannot be pickled, or sent to another process: load it there (its weights, "
        "threads and compiled kernels belong to one process)"
    )
