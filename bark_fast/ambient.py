"""Compute as if nobody had set anything of torch in this thread.

Most of torch's modes belong to a thread: the default device, autocast, inference mode, modes of
`__torch_function__` and `__torch_dispatch__`, the handling of denormal numbers. What a caller set
would hold where the caller's thread steps the engine and not where the engine's own does, so it
holds nowhere. The default dtype is one for all threads and cannot be set for some time: allocations
name theirs. What else is one for all threads (deterministic algorithms, the precision of products
on a CPU, oneDNN on or off) holds everywhere. On CUDA, products in TF32 would take the codec out of
what is promised of it (audio within 1e-5): `exact_float32` turns them off while work is enqueued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import _pop_mode_temporarily

_AUTOCASTS = ("cpu", "cuda")
_DENORMAL = 5e-324


@contextmanager
def settled(*, inference: bool) -> Iterator[None]:
    """Leave out what was set for the calling thread, meanwhile.

    Args:
        inference: whether tensors that are made are inference tensors, which only inference mode
            may write to. No gradient is recorded in either case.
    """
    autocasts = [device for device in _AUTOCASTS if torch.is_autocast_enabled(device)]
    flushes = _DENORMAL * 1.0 == 0.0
    try:
        for device in autocasts:
            torch.set_autocast_enabled(device, False)
        if flushes:
            torch.set_flush_denormal(False)
        with without_modes(), torch.inference_mode(inference), torch.no_grad():
            yield
    finally:
        if flushes:
            torch.set_flush_denormal(True)
        for device in autocasts:
            torch.set_autocast_enabled(device, True)


@contextmanager
def without_modes() -> Iterator[None]:
    """Leave out modes of `__torch_function__`, which the default device is, and of
    `__torch_dispatch__`."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        yield


@contextmanager
def meta_device() -> Iterator[None]:
    """Let modules be built without numbers, inside `settled` too."""
    with ExitStack() as stack:
        for _ in range(torch._C._len_torch_function_stack()):
            stack.enter_context(_pop_mode_temporarily())  # the caller's
        stack.enter_context(torch._C._EnableTorchFunction())
        stack.enter_context(torch.device("meta"))
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let CUDA's libraries multiply float32 in float32, not in TF32, whatever has been set.

    The setting is one for all threads: the first that comes turns TF32 off, the last that leaves
    puts back what was there.
    """
    _without_tf32.enter()
    try:
        yield
    finally:
        _without_tf32.leave()


class _WithoutTF32:
    """Counts who needs exact products, and holds what to do when nobody does any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._restore: list[Callable[[], None]] = []

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._restore = _turn_tf32_off()

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for restore in self._restore:
                    restore()


_without_tf32 = _WithoutTF32()


def _turn_tf32_off() -> list[Callable[[], None]]:
    """Turn it off for convolutions, recurrent networks and products; return the way back."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    restore: list[Callable[[], None]] = []
    # Since torch 2.9 each operation has a setting, beside the older one for all of cuDNN. Both are
    # set, because whoever reads the older one gets an error where they differ.
    operations: list[Any] = [
        part
        for part in (getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), products)
        if hasattr(part, "fp32_precision")
    ]
    try:
        allowed = cudnn.allow_tf32
    except RuntimeError:  # they differ already
        allowed = False
    if allowed:
        cudnn.allow_tf32 = False
        restore.append(lambda: setattr(cudnn, "allow_tf32", True))
    for operation in operations:
        if operation.fp32_precision == "tf32":
            operation.fp32_precision = "ieee"
            restore.append(lambda operation=operation: _allow_tf32(operation))  # type: ignore[misc]
    if not operations and (precision := torch.get_float32_matmul_precision()) != "highest":
        torch.set_float32_matmul_precision("highest")
        restore.append(lambda: torch.set_float32_matmul_precision(precision))
    return restore


def _allow_tf32(operation: Any) -> None:
    operation.fp32_precision = "none"  # what is set for all
    if operation.fp32_precision != "tf32":
        operation.fp32_precision = "tf32"
