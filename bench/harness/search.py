"""Find the static batch size and attention with which transformers is fastest on a workload."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.engines import WorkloadRun
from bench.harness.worker import Worker, WorkerError
from bench.harness.workload import Utterance, batch_sizes_to_try


@dataclass(frozen=True)
class Trial:
    """One run of transformers on a workload, with one attention and batch size."""

    attention: str
    batch_size: int
    seconds: float


def find_best(
    rivals: dict[str, Worker],
    utterances: Sequence[Utterance],
    sizes: Sequence[int],
    search_s: float,
) -> list[Trial]:
    """Try batch sizes and attention implementations; return the trials, the best first.

    Batch sizes are tried from the largest down, until two in a row are slower than the best before
    them or `search_s` is over; then the other attention implementations, at the best size.
    """
    deadline = time.monotonic() + search_s
    trials: list[Trial] = []

    def attempt(attention: str, batch_size: int) -> None:
        try:
            made: WorkloadRun = rivals[attention].call("run", utterances, batch_size=batch_size)
        except WorkerError as error:
            if "out of memory" not in str(error).lower():
                raise
            print(f"  transformers, batches of {batch_size}: out of memory", flush=True)
            return
        trials.append(Trial(attention, batch_size, made.seconds))
        print(f"  transformers, {attention}, batches of {batch_size}: {made.seconds:.2f} s")

    def best() -> Trial:
        return min(trials, key=lambda trial: trial.seconds)

    first, *others = rivals
    slower = 0
    for size in batch_sizes_to_try(utterances, sizes):
        if slower == 2 or (trials and time.monotonic() > deadline):
            break
        before = len(trials)
        attempt(first, size)
        if len(trials) > before:
            slower = 0 if trials[-1] is best() else slower + 1
    for attention in others:
        if time.monotonic() < deadline:
            attempt(attention, best().batch_size)
    return sorted(trials, key=lambda trial: trial.seconds)
