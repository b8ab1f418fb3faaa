"""Time the candidates for every kernel's launch, and write the table of this device.

    python -m bench tune --sizes large small

Each candidate must give what plain torch gives, as exactly as the kernels' contract asks, and
candidates that claim to add a row's terms in the same order must give the same bits. The fastest
go into `kernels/triton/tables/<device>.json`, which the library uses from then on; what is already
there for other shapes stays. All candidates are compiled first, in as many processes as there are
cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from bark_fast.kernels import aot
from bark_fast.kernels.triton import schedules
from bark_fast.kernels.triton.device import Device
from bark_fast.kernels.triton.schedules import (
    DEFAULTS,
    Key,
    Launch,
    Table,
    candidates,
    trying,
    with_rows,
)
from bench.cases.kernels import CaseMaker, KernelCase
from bench.harness.arguments import DTYPES
from bench.harness.machine import cache_bytes, describe_versions, device_folder
from bench.harness.timing import time_kernel

_KINDS = {kind.__name__: kind for kind in DEFAULTS}
LEAST_GAIN = 0.02  # less is not told apart from chance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", default=["large", "small"], choices=list(aot.SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=[d for d in DTYPES if "16" in d])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="the table's file")
    parser.add_argument("--budget-s", type=float, default=300.0, help="after so long it stops")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compiling processes")


def run(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("tune needs a CUDA device")
        return 2
    return tune_all(arguments, torch.device("cuda", torch.cuda.current_device()))


Timer = Callable[[Callable[[], object]], float]


def tune_all(
    arguments: argparse.Namespace, device: torch.device, timer: Timer | None = None
) -> int:
    """Tune every choice on `device`, and write the table after each.

    Args:
        timer: returns the seconds of a call; None measures them.
    """
    deadline = time.monotonic() + arguments.budget_s
    of_key = collect(arguments, device)
    if device.type == "cuda":
        # Spawned: a fork of a process that uses a GPU may hang.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, mp_context=spawn) as pool:
            compile_all(of_key, pool)
    path = arguments.out or schedules.TABLES / f"{device_folder(device)}.json"
    table = Table.read(path) if path.exists() else Table(Device.of(device), {}, {})
    entries, told = dict(table.entries), dict(table.measured.get("microseconds", {}))
    for key, cases in of_key.items():
        if time.monotonic() > deadline:
            print("the time is over; the rest keeps its defaults")
            break
        tuned = tune(key, cases, device, timer)
        entries[key] = tuned.entry
        told[" ".join(map(str, key))] = tuned.microseconds
        print(tuned.line(), flush=True)
        measured = {"versions": describe_versions(), "microseconds": told}
        replace(table, entries=entries, measured=measured).write(path)
    print(f"written to {path}")
    return 0


Cases = list[tuple[KernelCase, int]]
"""Cases with the number of rows that their launch is chosen for."""


def collect(arguments: argparse.Namespace, device: torch.device) -> dict[Key, Cases]:
    """Return the cases that each choice of a launch decides."""
    of_key: dict[Key, Cases] = defaultdict(list)
    dtype = getattr(torch, arguments.dtype)
    for size in arguments.sizes:
        maker = CaseMaker(
            aot.SHAPES[size], dtype, device, "triton", cache_bytes=cache_bytes(device)
        )
        for case in maker.all():
            if case.plain is None or arguments.only not in case.name:
                continue
            with trying(None) as trial:
                case.run()
            for key, rows in dict.fromkeys(trial.choices):
                of_key[key].append((case, rows))
    return of_key


Compilation = tuple[str, str, str]
"""The module and name of a kernel, and what Triton specialises it on, as it serialises that."""


def compile_all(of_key: Mapping[Key, Cases], pool: Executor) -> None:
    """Compile all candidates into Triton's cache."""
    found: dict[Compilation, None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found[fn.module, fn.name, compile["specialization_data"]] = None
        return True  # neither compile nor launch it

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = note
        for key, cases in of_key.items():
            for candidate in candidates_of(key):
                with trying(candidate):
                    for case, _ in cases:
                        case.run()
    start = time.monotonic()
    failed = sum(pool.map(_fails, found))
    print(
        f"{len(found)} kernels compiled in {time.monotonic() - start:.0f} s, {failed} of them in "
        "vain",
        flush=True,
    )


def _fails(compilation: Compilation) -> bool:
    """Compile a kernel; return whether that fails, as it then will where it is timed, too."""
    module, name, specialization = compilation
    try:
        getattr(import_module(module), name).preload(specialization)
    except Exception as error:
        if not _is_unfit(error):
            raise
        return True
    return False


def candidates_of(key: Key) -> Sequence[Launch]:
    """Return the candidates for a choice."""
    kind, _, shape = key
    return candidates(_KINDS[kind], shape)


@dataclass
class Tuned:
    """The result for one choice.

    Attributes:
        seconds: of the default and of the chosen launch, by rows.
        failures: why a candidate is out, by candidate.
    """

    key: Key
    entry: tuple[tuple[int, Launch], ...]
    seconds: dict[int, tuple[float, float]]
    failures: dict[Launch, str] = field(default_factory=dict)

    @property
    def microseconds(self) -> dict[str, list[float]]:
        """The default's and the chosen launch's, by rows."""
        return {str(rows): [round(1e6 * s, 2) for s in both] for rows, both in self.seconds.items()}

    def line(self) -> str:
        """Return what a reader wants to know of it."""
        times = ", ".join(
            f"{rows} rows {before:g} -> {after:g} us"
            for rows, (before, after) in self.microseconds.items()
        )
        chosen = " / ".join(dict.fromkeys(str(launch) for _, launch in self.entry))
        out = "".join(f"\n    out: {launch}: {why}" for launch, why in self.failures.items())
        return f"{' '.join(map(str, self.key))}: {times}; {chosen}{out}"


def tune(key: Key, cases: Cases, device: torch.device, timer: Timer | None = None) -> Tuned:
    """Time the candidates of a choice on its cases."""

    def measured(call: Callable[[], object]) -> float:
        return time_kernel(call, device).median

    default, *others = candidates_of(key)
    expected = [_Expected.of(case) for case, _ in cases]
    failures: dict[Launch, str] = {}
    seconds: dict[Launch, list[float]] = {}
    bits: dict[tuple[int, ...], list[Tensor]] = {}
    for launch in (default, *others):
        with trying(launch):
            try:
                outputs = [case.run() for case, _ in cases]
                faults = [e.fault(o) for e, o in zip(expected, outputs, strict=True)]
                fault = next(filter(None, faults), None)
                alike = bits.setdefault(launch.order, outputs)  # type: ignore[arg-type]
                if fault is None and not all(map(_same, alike, outputs)):
                    fault = "not the bits that its order promises"
                if fault is not None:
                    if launch == default:
                        raise RuntimeError(f"the default launch of {key} is wrong: {fault}")
                    failures[launch] = fault
                    continue
                seconds[launch] = [(timer or measured)(case.run) for case, _ in cases]
            except Exception as error:
                if launch == default or not _is_unfit(error):
                    raise
                failures[launch] = f"{type(error).__name__}: {error}".splitlines()[0]
    rows = [n for _, n in cases]
    best = fastest(default, seconds, rows)
    spans = {
        n: (
            sum(t for t, r in zip(seconds[default], rows, strict=True) if r == n),
            sum(t for t, r in zip(seconds[best[n]], rows, strict=True) if r == n),
        )
        for n in best
    }
    return Tuned(key, with_rows(best), spans, failures)


def fastest(
    default: Launch, seconds: Mapping[Launch, Sequence[float]], rows: Sequence[int]
) -> dict[int, Launch]:
    """Return the launch for each number of rows, all of one order of adding.

    Args:
        seconds: of each launch by case.
        rows: of each case.
    """

    def share(launch: Launch, n: int) -> float:
        """Return the time on the cases of n rows, in times of the default's."""
        pairs = zip(seconds[launch], seconds[default], rows, strict=True)
        return sum(new / old for new, old, r in pairs if r == n)

    by_order: dict[tuple[int, ...], list[Launch]] = defaultdict(list)
    for launch in seconds:
        by_order[launch.order].append(launch)

    def best_of(launches: Iterable[Launch]) -> dict[int, Launch]:
        return {n: min(launches, key=lambda launch: share(launch, n)) for n in dict.fromkeys(rows)}

    def total(best: Mapping[int, Launch]) -> float:
        return sum(share(launch, n) for n, launch in best.items())

    kept = best_of(by_order[default.order])
    kept = {n: b if share(b, n) < (1 - LEAST_GAIN) * share(default, n) else default
            for n, b in kept.items()}  # fmt: skip
    winner = min((best_of(launches) for launches in by_order.values()), key=total)
    return winner if total(winner) < (1 - LEAST_GAIN) * total(kept) else kept


@dataclass(frozen=True)
class _Expected:
    """The exact output of a case, and how far a kernel's may be from it."""

    exact: Tensor
    error: float

    @classmethod
    def of(cls, case: KernelCase) -> _Expected:
        assert case.plain is not None
        exact = case.plain(lambda t: t.double())
        plain = case.plain(lambda t: t.clone())
        rounding = torch.finfo(plain.dtype).eps * exact.abs().max().item()
        return cls(exact, 2.0 * (plain.double() - exact).abs().max().item() + rounding)

    def fault(self, output: Any) -> str | None:
        """Return what is wrong with an output, None if nothing is."""
        error = (output.double() - self.exact).abs().max().item()
        return None if error <= self.error else f"error {error:.3g}, at most {self.error:.3g}"


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b)


def _is_unfit(error: Exception) -> bool:
    """True if a launch needs more of the device than it has, or cannot be compiled for it."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return isinstance(error, (CompilationError, OutOfResources, PTXASError)) or (
        # Some passes of the compiler say no more than that they failed.
        isinstance(error, RuntimeError) and "PassManager::run failed" in str(error)
    )
