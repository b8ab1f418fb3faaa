"""Which of the two CPU backends is faster, where only a measurement can tell.

Matrix tiles (AMX) multiply bfloat16 several times as fast as vectors do, and oneDNN has them; but
one row of a decode step waits for memory, whoever multiplies. So where a CPU has them both backends
are timed once, on products of a request's shapes. No such CPU has been at hand: what comes out
there was never seen.
"""

from __future__ import annotations

import functools
import time

import torch

from bark_fast.kernels.cpu import build
from bark_fast.kernels.cpu.native import NativeBackend
from bark_fast.kernels.cpu.onednn import OneDnnBackend
from bark_fast.kernels.reference import TorchBackend

_WIDTH, _WEIGHTS = 768, 24  # bark-small's width; more bytes of weights than caches hold
# Rows of a product, and how often a request of 100 semantic tokens runs each layer so: steps of the
# semantic and of the coarse stage; prompts of both and six passes of the fine one.
_RUNS = {1: 400, 1024: 10}
# What the products leave out, attention above all, is faster in the native kernels; and a choice
# that hung on noise would give one seed two speeches.
_CLEARLY = 0.8


def why_onednn(dtype: torch.dtype) -> str | None:
    """Return what speaks for oneDNN though the native kernels run `dtype` here; None: nothing."""
    if dtype != torch.bfloat16 or "amx_bf16" not in build.cpu_flags():
        return None
    ours, theirs = (products_s(backend, dtype) for backend in (NativeBackend, OneDnnBackend))
    if theirs >= _CLEARLY * ours:
        return None
    return f"oneDNN, with the matrix tiles of this CPU, takes {theirs / ours:.2f} of their time"


@functools.cache
def products_s(backend: type[TorchBackend], dtype: torch.dtype) -> float:
    """Measure the seconds of one layer's widest product over a whole request."""
    ops = backend()
    with torch.inference_mode():
        # Any numbers will do, and the caller's generator stays as it is.
        weight = torch.full((4 * _WIDTH, _WIDTH), 0.5, dtype=dtype, device="cpu")
        packed = [ops.pack_weight(weight) for _ in range(_WEIGHTS)]
        total = 0.0
        for rows, times in _RUNS.items():
            x = torch.full((rows, _WIDTH), 0.5, dtype=dtype, device="cpu")
            of_each = packed if rows == 1 else packed[:1]
            seconds = []
            for _ in range(4):  # the first warms up
                start = time.perf_counter()
                for each in of_each:
                    ops.fused_linear(x, each)
                seconds.append((time.perf_counter() - start) / len(of_each))
            total += times * min(seconds)
    return total
