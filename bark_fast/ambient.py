"""Compute as if nobody had set anything of torch in this thread.

Most of torch's modes belong to a thread: the default device, autocast, inference mode, modes of
`__torch_function__` and `__torch_dispatch__`, the handling of denormal numbers. What a caller set
would hold where the caller's thread steps the engine and not where the engine's own does, so it
holds nowhere. The default dtype is one for all threads and cannot be set for some time: allocations
name theirs. What else is one for all threads (deterministic algorithms, the precision of products,
oneDNN on or off) holds everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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
    # In a new thread torch sets its number of OpenMP threads when it first asks for it, which the
    # native kernels do not.
    torch.get_num_threads()
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
