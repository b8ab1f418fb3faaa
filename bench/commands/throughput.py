"""Time bark-fast alone on whole requests: seconds of audio a second, by requests at once.

    python -m bench throughput --size large --dtype bfloat16 --requests 1 64 256

The requests are those of `end_to_end`, which compares them with transformers and takes much longer.
Kernels that are compiled after the warm-up are counted: there should be none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.harness.arguments import add_checkpoint, add_common, begin
from bench.harness.checkpoint import checkpoint_for
from bench.harness.engines import BarkFastEngine, EngineSettings, WorkloadRun
from bench.harness.results import Case, Spread, percentile
from bench.harness.workload import LONGEST, SHORTEST, workload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16], help="at a time")
    parser.add_argument("--semantic-tokens", type=int, default=100, help="of a single request")
    parser.add_argument("--shortest", type=int, default=SHORTEST, help="tokens, mixed requests")
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--voices", type=int, default=2, choices=[1, 2, 3], help="one is no voice")
    parser.add_argument("--max-batch", type=int, help="of the engine")


def run(arguments: argparse.Namespace) -> int:
    results, _ = begin("throughput", arguments)
    with checkpoint_for(
        arguments.checkpoint, size=arguments.size, seed=arguments.seed, dtype=arguments.dtype
    ) as checkpoint:
        start = time.monotonic()
        engine = BarkFastEngine(
            EngineSettings(
                checkpoint,
                dtype=arguments.dtype,
                device=arguments.device,
                threads=arguments.threads,
                impl=arguments.impl,
                max_batch=arguments.max_batch,
            )
        )
        results.settings["ready_s"] = time.monotonic() - start
        print(f"loaded and warm after {results.settings['ready_s']:.1f} s", flush=True)
        for n in arguments.requests:
            utterances = workload(n, arguments)
            with compilations() as compiled:
                runs = [engine.run(utterances) for _ in range(1 + arguments.runs)]
            results.cases.append(summarize(n, runs, compiled))
            print_case(results.cases[-1])
            results.write(arguments.json)
    return 0


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Note the kernels that Triton has to compile, or to load, inside the block."""
    from triton import knobs

    names: list[str] = []

    def note(*, fn: Any, **_: Any) -> None:
        names.append(fn.name)

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = note
        yield names


def summarize(n: int, runs: Sequence[WorkloadRun], compiled: Sequence[str]) -> Case:
    """Sum up the runs; the first of them is a warm-up."""
    first, *timed = runs
    middle = sorted(timed, key=lambda run: run.seconds)[(len(timed) - 1) // 2]
    return Case(
        "1 request" if n == 1 else f"{n} mixed requests",
        Spread.of([run.seconds for run in timed]),
        {
            "requests": n,
            "audio_s": middle.audio_s,
            "audio_s_per_s": middle.audio_s / middle.seconds,
            "first_run_s": first.seconds,
            "latency_p50_s": percentile(middle.done_s, 0.5),
            "latency_p95_s": percentile(middle.done_s, 0.95),
            "stage_s": middle.stage_s,
            "peak_bytes": middle.peak_bytes,
            "compiled_after_warm_up": list(compiled),
        },
    )


def print_case(case: Case) -> None:
    values = case.values
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in values["stage_s"].items())
    print(
        f"{case.name}: {values['audio_s_per_s']:.1f} s of audio a second, {case.seconds.median:.2f}"
        f" s (first run {values['first_run_s']:.2f} s), p95 {values['latency_p95_s']:.2f} s; "
        f"stages {stages}; {len(values['compiled_after_warm_up'])} kernels compiled after warm-up",
        flush=True,
    )
