"""Predict times on GPUs by arithmetic, beside what was measured, and what changes would gain.

    python -m bench predict

A decode step, a prefill and a fine pass are recorded from the stages themselves, without a GPU, and
their kernels are compiled for the instructions they take. What the model leaves out makes it wrong
by some tens of per cent; its assumptions are printed first.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from bench.cases.aims import measured_on
from bench.cases.alternatives import ALTERNATIVES
from bench.cases.code import CompiledCode
from bench.cases.gpus import GPUS
from bench.cases.load import Load, LoadModel, load_of
from bench.cases.recording import config_of, decode_step
from bench.cases.time_model import TimeModel, no_code
from bench.harness.results import RESULTS
from bench.harness.workload import mixed_utterances, one_utterance

ROWS = (1, 16, 64, 256)
KEYS = 700


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", nargs="+", default=list(GPUS), choices=list(GPUS))
    parser.add_argument(
        "--sizes", nargs="+", default=["large", "small"], choices=("large", "small")
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="of decode steps")
    parser.add_argument("--keys", type=int, default=KEYS, help="that each row of a step sees")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 64, 256], help="of loads")
    parser.add_argument("--no-code", action="store_true", help="leave instructions out")
    parser.add_argument("--no-changes", action="store_true", help="leave the alternatives out")


def run(arguments: argparse.Namespace) -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("predict needs Triton's compiler: TRITON_INTERPRET must not be 1")
        return 2
    models = {
        name: TimeModel(
            GPUS[name], no_code if arguments.no_code else CompiledCode(GPUS[name].capability)
        )
        for name in arguments.gpus
    }
    first = next(iter(models.values()))
    print("Predicted, by a roofline for each operation. Assumed, with the units in the names:")
    print("\n".join(first.assumed.lines()))
    for model in models.values():
        gpu = model.gpu
        print(
            f"  {gpu.name}: {gpu.bytes_per_s / 1e12:g} TB/s, {gpu.flops_per_s / 1e12:g} TFLOP/s, "
            f"{gpu.multiprocessors} multiprocessors at {gpu.clock_hz / 1e9:g} GHz ({gpu.source})"
        )
    for size in arguments.sizes:
        print(f"\n{'bark' if size == 'large' else 'bark-small'}, bfloat16")
        print(f"{'':<42}" + "".join(f"{name:>11}{'measured':>10}" for name in models))
        for line in predictions(models, size, arguments):
            print(line, flush=True)
    if not arguments.no_changes:
        for size in arguments.sizes:
            print_changes(first, size, arguments)
            print_operations(first, size, arguments)
    return 0


def predictions(
    models: dict[str, TimeModel], size: str, arguments: argparse.Namespace
) -> Iterator[str]:
    """Yield a line for each figure: predicted for each GPU, with what was measured beside it."""
    loads = {name: LoadModel(model, size) for name, model in models.items()}

    def line(label: str, values: dict[str, float], measured: str, form: str = "{:.0f}") -> str:
        cells = []
        for name, value in values.items():
            found = measured_on(RESULTS, name, size, measured)
            cells.append(
                f"{form.format(value):>11}{'-' if found is None else form.format(found):>10}"
            )
        return f"{label:<42}" + "".join(cells)

    for stage in ("semantic", "coarse"):
        for rows in arguments.rows:
            steps = {n: m.step_us(stage, rows, keys=arguments.keys) for n, m in loads.items()}
            label = f"{stage} decode after {arguments.keys}, B={rows}"
            yield line(f"{label}, us", steps, label)
    for prompts in (1, 8):
        values = {n: m.prefill_us("semantic", prompts, tokens=257) for n, m in loads.items()}
        label = f"semantic prefill, 257 tokens, B={prompts}"
        yield line(f"{label}, us", values, label)
    for windows in (1, 8):
        values = {n: 6 * m.fine_us(windows) for n, m in loads.items()}
        label = f"fine window, 6 passes, B={windows}"
        yield line(f"{label}, us", values, label)
    for n in arguments.requests:
        load = load_of(one_utterance(250) if n == 1 else mixed_utterances(n), config_of(size))
        rates = {name: model.audio_s_per_s(load) for name, model in loads.items()}
        label = "1 request" if n == 1 else f"{n} mixed requests"
        yield line(f"{label}, s of audio a second", rates, label, "{:.1f}")
        stages = next(iter(loads.values())).stage_s(load)
        of = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items())
        yield f"    on an {next(iter(loads))}: {of}"


def print_changes(model: TimeModel, size: str, arguments: argparse.Namespace) -> None:
    """Print what each alternative would make of the times."""
    now = LoadModel(model, size)
    load = load_of(mixed_utterances(64), config_of(size))
    print(f"\nchanges, {size}, on an {model.gpu.name} (per cent of the time now; - is under 0.05)")
    columns = [f"B={rows}" for rows in arguments.rows]
    columns += ["prompt", "8 prompts", "fine", "8 windows", "64 mixed"]
    print(f"{'':<44}" + "".join(f"{column:>10}" for column in columns))
    before = times(now, load, arguments.rows, arguments.keys)
    print(f"{'now, us (64 mixed: ms)':<44}" + "".join(f"{value:10.0f}" for value in before))
    for alternative in ALTERNATIVES:
        after = times(alternative.apply(now), load, arguments.rows, arguments.keys)
        shares = [100 * (a / b - 1) for a, b in zip(after, before, strict=True)]
        cells = "".join(f"{'-' if abs(s) < 0.05 else f'{s:+.1f} %':>10}" for s in shares)
        print(f"{alternative.name:<44}{cells}", flush=True)


def times(model: LoadModel, load: Load, rows: Sequence[int], keys: int) -> list[float]:
    """Return the times that alternatives are judged by."""
    return [
        *(model.step_us("semantic", n, keys=keys) for n in rows),
        *(model.prefill_us("semantic", n, tokens=257) for n in (1, 8)),
        *(model.fine_us(n) for n in (1, 8)),
        1e3 * sum(model.stage_s(load).values()),
    ]


def print_operations(model: TimeModel, size: str, arguments: argparse.Namespace) -> None:
    """Print what bounds each operation of a step."""
    for rows in arguments.rows:
        print(f"\na semantic step of {size}, {rows} rows, on an {model.gpu.name}, us a call")
        for op in decode_step(size, "semantic", rows, keys=arguments.keys):
            parts = model.parts_us(op)
            bound = max(parts, key=lambda part: parts[part])
            gaps = sum(model.gap_us(launch) for launch in op.launches)
            print(
                f"  {op.count:>3} x {op.name:<22}{model.operation_us(op):8.2f}: gap {gaps:.1f}, "
                f"waits {model.waits_us(op):.1f}, {bound} {parts[bound]:.2f}"
            )
