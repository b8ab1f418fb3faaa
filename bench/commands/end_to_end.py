"""Time whole requests, text to samples, side by side with transformers' BarkModel.

    python -m bench end_to_end --size small --dtype bfloat16 --requests 1 16
    python -m bench end_to_end --size small --dtype bfloat16 --int8

Weights are random. Both engines run in the same run, each in a separate process, with the same
checkpoint, dtype, device, threads and lengths (but bark-fast's codec is always float32). Before
anything is timed, greedy outputs in float32 are compared, token by token. transformers gets its
best: requests are sorted into static batches of one voice, several batch sizes and attention
implementations are tried, and the best one counts. Both engines are warm. Runs alternate, and
ratios are taken pair by pair, because the speed of a machine drifts. `--int8` adds bark-fast with
8-bit weights to every pair; its tokens are its own, and as many.

The figures are written after each workload, so that an end halfway loses nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bark_fast.voices import open_voices
from bench.cases.requests import floor_s
from bench.harness.arguments import add_checkpoint, add_common, begin, dtype_of
from bench.harness.checkpoint import checkpoint_for, read_config
from bench.harness.engines import BarkFastEngine, EngineSettings, TransformersEngine, WorkloadRun
from bench.harness.machine import Limits
from bench.harness.report import end_to_end_sides
from bench.harness.results import Case, Spread, percentile
from bench.harness.search import find_best
from bench.harness.worker import Worker, WorkerError
from bench.harness.workload import Utterance, mixed_utterances, workload

_CHECK_TOKENS = 12  # enough for a coarse window, a fine window and the codec
_AUDIO_TOLERANCE = 1e-4
_OTHER_ATTENTIONS = ("sdpa", "flash_attention_2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16], help="at a time")
    parser.add_argument("--semantic-tokens", type=int, default=100, help="of a single request")
    parser.add_argument("--shortest", type=int, default=30, help="semantic tokens, mixed requests")
    parser.add_argument("--longest", type=int, default=200)
    parser.add_argument("--voices", type=int, default=2, choices=[1, 2, 3], help="one is no voice")
    parser.add_argument("--max-batch", type=int, help="of bark-fast's engine")
    parser.add_argument(
        "--int8", action="store_true", help="time bark-fast with its weights in 8 bits too (CPU)"
    )
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128],
        help="static batches to try for transformers",
    )  # fmt: skip
    parser.add_argument("--search-s", type=float, default=300.0, help="for trying batch sizes")
    parser.add_argument("--budget-s", type=float, help="then fewer runs, and no further workload")
    parser.add_argument("--keep-going", action="store_true", help="time unequal outputs too")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return 1 if outputs were not equal."""
    results, limits = begin("end_to_end", arguments)
    deadline = time.monotonic() + (arguments.budget_s or float("inf"))
    with (
        checkpoint_for(
            arguments.checkpoint, size=arguments.size, seed=arguments.seed, dtype=arguments.dtype
        ) as checkpoint,
        ExitStack() as stack,
    ):
        options = EngineSettings(
            checkpoint,
            dtype=arguments.dtype,
            device=arguments.device,
            threads=arguments.threads,
            impl=arguments.impl,
            max_batch=arguments.max_batch,
        )
        exact = replace(options, dtype="float32", exact=True)
        if exact.dtype == options.dtype and arguments.device == "cpu":
            bark_fast, eager = open_pair(stack, exact)
            equal = check_equal(bark_fast, eager, arguments.voices)
        else:
            with ExitStack() as briefly:
                equal = check_equal(*open_pair(briefly, exact), arguments.voices)
            bark_fast, eager = open_pair(stack, options)
        results.settings["outputs_equal_float32"] = equal
        if not equal and not arguments.keep_going:
            return 1
        ours = {"bark_fast": bark_fast}
        if arguments.int8:
            ours["bark_fast_int8"] = open_int8(stack, options)
        rivals = {"eager": eager, **open_others(stack, eager, options)}
        results.settings["attention_tried"] = list(rivals)
        for n in sorted(arguments.requests):
            if time.monotonic() > deadline:
                print(f"{n} requests: not run, the budget is spent")
                continue
            utterances = workload(n, arguments)
            case = compare(ours, rivals, utterances, arguments, deadline)
            case.values["floor_s"] = floor_of(utterances, checkpoint, limits, arguments)
            results.cases.append(case)
            print_case(case)
            results.write(arguments.json)
    return 0 if equal else 1


def open_pair(stack: ExitStack, options: EngineSettings) -> tuple[Worker, Worker]:
    """Start bark-fast and transformers, which load at the same time."""
    bark_fast, transformers = (
        stack.enter_context(Worker(engine, options=options))
        for engine in (BarkFastEngine, TransformersEngine)
    )
    bark_fast.wait()
    transformers.wait()
    return bark_fast, transformers


def open_int8(stack: ExitStack, options: EngineSettings) -> Worker:
    """Start bark-fast with its weights in 8 bits."""
    settings = replace(options, dtype="int8", impl="auto")  # which is the only one that has them
    worker = stack.enter_context(Worker(BarkFastEngine, options=settings))
    worker.wait()
    return worker


def open_others(stack: ExitStack, eager: Worker, options: EngineSettings) -> dict[str, Worker]:
    """Start transformers with each further attention implementation that it accepts."""
    workers = {}
    for attention in _OTHER_ATTENTIONS:
        reason = eager.call("refusal", attention)
        if reason is not None:
            print(f"transformers refuses {attention}: {reason[:100]}", flush=True)
            continue
        settings = replace(options, attention=attention)
        worker = stack.enter_context(Worker(TransformersEngine, options=settings))
        try:
            worker.wait()
        except WorkerError as error:
            print(f"transformers failed with {attention}: {str(error).strip()[-100:]}", flush=True)
        else:
            workers[attention] = worker
    return workers


def check_equal(bark_fast: Worker, transformers: Worker, n_voices: int) -> bool:
    """Return True if both engines make the same of a short request, without and with a voice."""
    equal = True
    for utterance in mixed_utterances(
        min(2, n_voices), n_voices=n_voices, shortest=_CHECK_TOKENS, longest=_CHECK_TOKENS
    ):
        shares = compare_outputs(
            bark_fast.call("run", [utterance], keep=True),
            transformers.call("run", [utterance], keep=True),
        )
        error = shares.pop("audio_error")
        same = min(shares.values()) == 1.0 and error < _AUDIO_TOLERANCE
        equal &= same
        print(
            f"float32, {'no voice' if utterance.voice is None else 'a voice'}: "
            + ("tokens equal" if same else f"NOT EQUAL, shares of equal tokens {shares}")
            + f", audio within {error:.1e}",
            flush=True,
        )
    return equal


def compare_outputs(first: WorkloadRun, second: WorkloadRun) -> dict[str, float]:
    """Return the shares of equal tokens, and the largest difference in audio."""
    assert first.outputs is not None
    assert second.outputs is not None
    pairs = list(zip(first.outputs, second.outputs, strict=True))
    return {
        "semantic": float(np.mean([np.mean(a.semantic == b.semantic) for a, b in pairs])),
        "fine": float(np.mean([np.mean(a.fine == b.fine) for a, b in pairs])),
        "audio_error": float(max(np.abs(a.samples - b.samples).max() for a, b in pairs)),
    }


def compare(
    ours: dict[str, Worker],
    rivals: dict[str, Worker],
    utterances: Sequence[Utterance],
    arguments: argparse.Namespace,
    deadline: float,
) -> Case:
    """Time one workload on both engines, in pairs of runs.

    Args:
        ours: bark-fast as "bark_fast", and in other ways.
    """
    bark_fast = ours["bark_fast"]
    first: WorkloadRun = bark_fast.call("run", utterances, keep=True)  # the warm-up
    others: dict[str, list[WorkloadRun]] = {n: [] for n in ours if n != "bark_fast"}
    for name in others:
        ours[name].call("run", utterances)
    tried = find_best(rivals, utterances, arguments.batch_sizes, arguments.search_s)
    best = tried[0]
    rival = rivals[best.attention]
    pairs: list[tuple[WorkloadRun, WorkloadRun]] = []
    single = len(utterances) == 1
    took = 0.0
    while len(pairs) < arguments.runs and (not pairs or time.monotonic() + took < deadline):
        start = time.monotonic()
        bark_fast_run = bark_fast.call("run", utterances)
        for name, runs in others.items():
            runs.append(ours[name].call("run", utterances))
        rival_run = rival.call("run", utterances, batch_size=best.batch_size, keep=single)
        pairs.append((bark_fast_run, rival_run))
        took = time.monotonic() - start
    values: dict[str, Any] = {
        "requests": len(utterances),
        "audio_s": first.audio_s,
        "ratio": Spread.of([b.seconds / a.seconds for a, b in pairs]).as_dict(),
        "bark_fast": summarize([a for a, _ in pairs]),
        "transformers": {
            **summarize([b for _, b in pairs]),
            "batch_size": best.batch_size,
            "attention": best.attention,
            "tried": [asdict(trial) for trial in tried],
        },
    }
    for name, runs in others.items():
        ratios = [b.seconds / a.seconds for a, (_, b) in zip(runs, pairs, strict=True)]
        values[name] = {**summarize(runs), "ratio": Spread.of(ratios).as_dict()}
    if single:
        values["equal_tokens"] = compare_outputs(first, pairs[-1][1])
        if find_spec("sentencex") is not None:  # which streams are cut into sentences by
            n = arguments.runs + 1
            times = [bark_fast.call("first_audio_s", utterances[0]) for _ in range(n)]
            values["bark_fast"]["first_audio_s"] = Spread.of(times[1:]).as_dict()
            # transformers gives a sentence out when it is whole.
            values["transformers"]["first_audio_s"] = values["transformers"]["seconds"]
    return Case(name_of(len(utterances)), Spread.of([a.seconds for a, _ in pairs]), values)


def summarize(runs: Sequence[WorkloadRun]) -> dict[str, Any]:
    """Summarise several runs of one engine; details are those of the median run."""
    middle = sorted(runs, key=lambda run: run.seconds)[(len(runs) - 1) // 2]
    return {
        "seconds": Spread.of([run.seconds for run in runs]).as_dict(),
        "audio_s_per_s": middle.audio_s / middle.seconds,
        "real_time_factor": middle.seconds / middle.audio_s,
        "latency_p50_s": percentile(middle.done_s, 0.5),
        "latency_p95_s": percentile(middle.done_s, 0.95),
        "stage_s": middle.stage_s,
        "peak_bytes": max(run.peak_bytes for run in runs),
    }


def floor_of(
    utterances: Sequence[Utterance], checkpoint: Path, limits: Limits, arguments: argparse.Namespace
) -> float:
    """Return the least time that the workload can take on this machine."""
    voices = open_voices(checkpoint, local_files_only=True)
    requests = [(u.n_tokens, voices.get(u.voice)) for u in utterances]
    size = dtype_of(arguments).itemsize
    return floor_s(requests, read_config(checkpoint), limits, size=size)


def name_of(n_requests: int) -> str:
    return "1 request" if n_requests == 1 else f"{n_requests} mixed requests"


def print_case(case: Case) -> None:
    values = case.values
    ratio, rival = values["ratio"], values["transformers"]
    print(f"{case.name}, {values['audio_s']:.1f} s of audio, floor {values['floor_s']:.2f} s")
    for name in end_to_end_sides(values):
        figures = values[name]
        seconds = figures["seconds"]
        first = figures.get("first_audio_s")
        print(
            f"  {name.replace('_', '-'):<15}{seconds['median']:8.2f} s "
            f"({seconds['min']:.2f} to {seconds['max']:.2f}), "
            f"{figures['audio_s_per_s']:.2f} s of audio a second, "
            f"RTF {figures['real_time_factor']:.2f}, "
            f"p50 {figures['latency_p50_s']:.2f} s, p95 {figures['latency_p95_s']:.2f} s, "
            f"{figures['peak_bytes'] / 2**30:.2f} GiB"
            + (f", first audio {first['median']:.2f} s" if first else "")
            + (f", ratio {figures['ratio']['median']:.2f}" if "ratio" in figures else "")
        )
    print(
        f"  ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}, "
        f"{len(ratio['runs'])} pairs; transformers: {rival['attention']}, "
        f"batches of {rival['batch_size']})",
        flush=True,
    )
