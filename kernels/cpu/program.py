"""Operations of `csrc/native.c`, run one by one or recorded as a program; weights as it reads them.

As many threads work as torch has in the calling one; they are the library's own (csrc/team.h).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bark_fast.kernels.cpu import build, memory
from bark_fast.kernels.cpu.operations import KIND, Operation, Pack, as_program, pointer
from bark_fast.kernels.state import PackedWeight

_thread = threading.local()


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Run `step` once and return what repeats its operations, on the same tensors, in one call.

    All that `step` computes must be such operations: what torch computes is not repeated.
    """
    operations: list[Operation] = []
    tensors: list[Any] = []
    _thread.recording = (operations, tensors)
    try:
        step()
    finally:
        _thread.recording = None
    program, n = as_program(operations), len(operations)
    run_all = build.load().run

    def repeat(held: list[Any] = tensors) -> None:
        # Held here, the tensors stay where they are and nobody else is given their memory.
        if run_all(program, n, torch.get_num_threads()):
            raise MemoryError(_NO_MEMORY)

    return repeat


def is_recording() -> bool:
    """Return True if this thread is in `record`."""
    return getattr(_thread, "recording", None) is not None


_NO_MEMORY = "no memory left for the intermediate results of an operation"


def run(operation: Operation, *tensors: Any) -> None:
    """Run one operation; `tensors` are those that it reads and writes."""
    if build.load().run(ctypes.byref(operation), 1, torch.get_num_threads()):
        raise MemoryError(_NO_MEMORY)
    recording = getattr(_thread, "recording", None)
    if recording is not None:
        recording[0].append(operation)
        recording[1].append(tensors)


def pack(weight: Tensor, *, int8: bool = False) -> PackedWeight:
    """Return weight [N, K] on the CPU in panels.

    Args:
        int8: round each row to steps of its largest number over 127.

    Raises:
        ValueError: K is odd in bfloat16, which is multiplied by pairs.
    """
    n, k = weight.shape
    if weight.dtype != torch.bfloat16 or not build.load().has_bfloat16():
        weight = weight.float()
    if weight.dtype == torch.bfloat16 and k % 2 and not int8:
        raise ValueError(f"a bfloat16 weight [N, K] must have an even K, got {k}")
    weight, half = weight.contiguous(), weight.dtype == torch.bfloat16
    scales = torch.empty(n, dtype=torch.float32, device="cpu") if int8 else None
    excess = torch.empty(n, dtype=torch.int32, device="cpu") if int8 else None
    # Rows start at whole vectors, so that a load never spans two cache lines.
    panels = memory.take(build.load().packed_bytes(half, int8, n, k))
    operation = Pack(
        kind=KIND["PACK"], half=half, panels=panels.data_ptr(), weight=weight.data_ptr(),
        scales=pointer(scales), excess=pointer(excess), n=n, k=k,
    )  # fmt: skip
    run(operation, panels, weight, scales, excess)
    return PackedWeight(panels, weight.shape, scales, excess)
