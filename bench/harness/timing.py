"""Time a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.harness.results import Spread

_MAX_RUNS = 100


def synchronize(device: torch.device) -> None:
    """Wait for everything enqueued on `device`; a CPU enqueues nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(
    run: Callable[[Any], object],
    device: torch.device,
    *,
    prepare: Callable[[], Any] = lambda: None,
    runs: int = 3,
    at_least_s: float = 0.3,
) -> Spread:
    """Measure the wall time of `run`, by the host's clock between two synchronisations.

    The first call is a warm-up. Then there are at least `runs` calls, and more of a short one.

    Args:
        prepare: makes the argument of each call; its time does not count.
    """
    times: list[float] = []
    total, warm = 0.0, False
    while len(times) < runs or (total < at_least_s and len(times) < _MAX_RUNS):
        argument = prepare()
        synchronize(device)
        start = time.perf_counter()
        run(argument)
        synchronize(device)
        elapsed = time.perf_counter() - start
        if warm:
            times.append(elapsed)
            total += elapsed
        warm = True
    return Spread.of(times)


def time_kernel(run: Callable[[], object], device: torch.device, *, runs: int = 3) -> Spread:
    """Measure the time of one launch, on CUDA without the time the host takes to issue it."""
    if device.type != "cuda":
        return time_calls(lambda _: run(), device, runs=runs)
    from triton.testing import do_bench_cudagraph

    # In a graph, as an engine runs them: else the launches of a few us are what is timed.
    times = do_bench_cudagraph(run, rep=20, return_mode="all")
    return Spread.of([ms * 1e-3 for ms in times])
