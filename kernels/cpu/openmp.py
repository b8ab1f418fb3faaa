"""The OpenMP runtime that torch computes with: which it is, and its worker threads. (The native
kernels have threads of their own: csrc/team.h.)

A process can hold several, because wheels bring their own. Torch's is the one whose number of
threads torch follows.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator

import torch

_OMP_PAUSE_SOFT = 1  # OpenMP 5.0, section 3.2.44: omp_pause_resource_all


@functools.cache
def runtime() -> ctypes.CDLL | str:
    """Return what finds the functions of torch's OpenMP runtime, or why it is not known."""
    try:
        for library in _candidates():
            if _torch_follows(library):
                return library
    except Exception as error:  # whatever a loader does: nothing here is worth an end of speech
        return f"torch's OpenMP runtime was not found: {error!r}"
    return "torch does not run on an OpenMP runtime that can be told"


def why_no_openmp() -> str | None:
    """Return why torch's OpenMP runtime is not known; None if it is."""
    found = runtime()
    return found if isinstance(found, str) else None


@contextlib.contextmanager
def cpu_threads(n: int | None) -> Iterator[None]:
    """Compute with n threads in the calling thread meanwhile; None leaves their number as it is.

    torch.set_num_threads would also tell threads that are still to come.
    """
    if n is None:
        yield
        return
    found, before = runtime(), torch.get_num_threads()
    change = torch.set_num_threads if isinstance(found, str) else found.omp_set_num_threads
    change(n)
    try:
        yield
    finally:
        change(before)


def release_threads() -> bool:
    """Give back the OpenMP workers of the calling thread; its next parallel operation makes new
    ones.

    Each thread that computes has workers of its own. As soon as there are more of them than cores,
    libgomp lets all sleep between operations instead of watching for the next, and those of a
    decode step follow within microseconds where torch computes them.

    Returns:
        True if the thread has no workers now. The runtime may be unknown, or older than OpenMP 5.
    """
    found = runtime()
    if isinstance(found, str) or not _fork.is_prepared:  # it would wait for them
        return False
    pause = getattr(found, "omp_pause_resource_all", None)
    return pause is not None and bool(pause(_OMP_PAUSE_SOFT) == 0)


def _candidates() -> Iterator[ctypes.CDLL]:
    """Yield what torch's calls of OpenMP can be bound to: first what all libraries of the process
    see (LD_PRELOAD), then what torch itself was linked with."""
    yield ctypes.CDLL(None)
    # Not loaded anew, should the file have been replaced by another since.
    yield ctypes.CDLL(torch._C.__file__, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)


def _torch_follows(library: ctypes.CDLL) -> bool:
    """Return True if torch runs as many threads as this runtime is told."""
    if not hasattr(library, "omp_set_num_threads") or not hasattr(library, "omp_get_max_threads"):
        return False
    torch.get_num_threads()  # the first call in a thread sets the number itself
    n = library.omp_get_max_threads()
    try:
        library.omp_set_num_threads(n + 1)
        return bool(torch.get_num_threads() == n + 1)
    finally:
        library.omp_set_num_threads(n)


# Forks -------------------------------------------------------------------------------------------


class _Fork:
    """Remembers the process in which the OpenMP runtime has the workers that it believes to have.

    A fork copies the thread that calls it and no other. libgomp's pool would be one of threads that
    do not exist, and the next parallel operation would wait for them for ever. So the thread that
    forks gives its workers back first.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._prepared = False

    def before(self) -> None:
        self._prepared = release_threads()

    def after_in_child(self) -> None:
        if self._prepared:
            self._process = os.getpid()

    @property
    def is_prepared(self) -> bool:
        """True unless the workers of this process were left behind in another."""
        return self._process == os.getpid()


_fork = _Fork()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_fork.before, after_in_child=_fork.after_in_child)


def survives_fork() -> bool:
    """Return True if parallel operations end in this process, should it be a fork of another.

    They do not where the fork was made by other means than Python's (by a server written in C), or
    the OpenMP runtime cannot give its workers back; unless one thread does everything.
    """
    return _fork.is_prepared or torch.get_num_threads() == 1
