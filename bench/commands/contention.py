"""Time one sentence alone, and beside processes that keep a core busy each.

    python -m bench contention --size demo --dtype float32
    python -m bench contention --size small --semantic-tokens 100

With k busy processes on n cores a fair share of the machine is n / (n + k). The ratio says how many
times as long a sentence takes as with its fair share of the speed that it has alone: 1 is fair, and
what is above it is lost to waiting.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bark_fast import Bark, GenerationParams
from bark_fast.checkpoint.random import SIZES
from bench.harness.arguments import add_checkpoint, add_common, begin, device_of, dtype_of
from bench.harness.checkpoint import DEMO, checkpoint_for
from bench.harness.results import Case, Spread

_TEXT = "Hello, my dog is cute, and the rain has stopped."
_SETTLE_S = 0.3  # until the system has spread the busy processes over the cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, sizes=(*SIZES, DEMO))
    add_checkpoint(parser)
    parser.add_argument("--busy", nargs="+", type=int, default=[1, 2], help="busy processes")
    parser.add_argument("--semantic-tokens", type=int, default=40, help="of the sentence, at most")


def run(arguments: argparse.Namespace) -> int:
    results, _ = begin("contention", arguments)
    results.settings["load_average"] = os.getloadavg()[0]
    made_with = {"size": arguments.size, "seed": arguments.seed, "dtype": arguments.dtype}
    with checkpoint_for(arguments.checkpoint, **made_with) as folder:
        bark = Bark.from_pretrained(
            folder,
            device=device_of(arguments),
            dtype=dtype_of(arguments),
            impl=arguments.impl,
            local_files_only=True,
        )
        seconds = measure(bark, [0, *arguments.busy], arguments)
    cores = len(os.sched_getaffinity(0))
    alone = Spread.of(seconds[0]).median
    for busy, found in seconds.items():
        spread, share = Spread.of(found), cores / (cores + busy)
        ratio = spread.median * share / alone
        results.cases.append(Case(f"busy={busy}", spread, {"fair_share": share, "ratio": ratio}))
        print(
            f"{busy} busy: {spread.median:.3f} s ({min(found):.3f} to {max(found):.3f}), "
            f"{ratio:.2f} times what a fair share takes",
            flush=True,
        )
    results.write(arguments.json)
    return 0


def measure(
    bark: Bark, busy: Sequence[int], arguments: argparse.Namespace
) -> dict[int, list[float]]:
    """Return the seconds of each run for each number of busy processes, which take turns."""
    params = GenerationParams(seed=1, max_semantic_tokens=arguments.semantic_tokens)
    seconds: dict[int, list[float]] = {n: [] for n in busy}
    with busy_processes(max(busy)) as processes:
        for turn in range(arguments.runs + 1):
            for n in busy:
                with awake(processes[:n]):
                    start = time.perf_counter()
                    bark.generate(_TEXT, params=params)
                    if turn:  # the first one warms up
                        seconds[n].append(time.perf_counter() - start)
    return seconds


@contextmanager
def busy_processes(n: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Provide processes that only count, asleep."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def awake(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Let processes run meanwhile."""
    for process in processes:
        process.send_signal(signal.SIGCONT)
    time.sleep(_SETTLE_S)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
