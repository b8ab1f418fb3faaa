"""Run all benchmarks in one command, each in a separate process.

A part that fails or hangs ends alone: the others run all the same, and the summary at the end says
which it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.harness.machine import describe_machine, describe_versions, device_folder
from bench.harness.results import Case, Results, Spread

RESULTS = Path(__file__).parents[1] / "results"
_ROOT = Path(__file__).parents[2]
_TAIL = 12  # lines of a part's output that are shown; the rest is in its log


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        command: arguments of the Python interpreter.
        limit_s: after so long it is killed.
        always: run it even if the time for all is over, because it sums up the other parts.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    always: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part: "ok", "failed", "killed" or "not run"."""

    name: str
    status: str
    seconds: float
    limit_s: float


def quick_parts(folder: Path, work: Path) -> list[Part]:
    """Return every part once, at sizes that two CPU cores get through in two minutes."""
    stages = str(folder / "stages.json")
    few = ("--shortest", "8", "--longest", "16")
    return [
        _bench("kernels", folder, 40, "--size", "small"),
        _bench(
            "stages", folder, 50, "--size", "small", "--checkpoint", str(work / "small"),
            "--batches", "1", "4", "--only", "decode", "codec",
        ),
        _bench(
            "end_to_end", folder, 60, "--size", "tiny", "--checkpoint", str(work / "tiny"),
            "--dtype", "float32", "--requests", "1", "4", "--semantic-tokens", "16", *few,
        ),
        _bench(
            "serve", folder, 30, "--size", "tiny", "--checkpoint", str(work / "tiny"),
            "--dtype", "float32", "--count", "6", "--seconds", "3", *few,
        ),
        Part("compare", ("-m", "bench", "compare", stages, stages), 15),
        Part("plot", ("-m", "bench", "plot", str(folder)), 15, always=True),
    ]  # fmt: skip


def gpu_parts(folder: Path, work: Path) -> list[Part]:
    """Return the parts worth running on a GPU, the most worthwhile first."""
    small, large = (("--size", s, "--checkpoint", str(work / s)) for s in ("small", "large"))
    parts = [
        Part("gpu tests", ("-m", "pytest", "-q", "-m", "gpu"), 60),
        _bench("stages", folder, 80, *large, name="stages-large"),
        _bench("kernels", folder, 40, "--size", "large", name="kernels-large"),
        _bench(
            # Of static batches the largest alone: each try of transformers takes a minute.
            "end_to_end", folder, 230, *large, "--requests", "1", "64", "--semantic-tokens", "250",
            "--batch-sizes", "32", "64", "--search-s", "1", "--budget-s", "190", "--keep-going",
            name="end_to_end-large",
        ),
        _bench("serve", folder, 45, *large, "--seconds", "6", "--count", "128", name="serve-large"),
        Part("kernel tests", ("-m", "pytest", "-q", "tests/kernels"), 100),
        _bench("kernels", folder, 40, "--size", "small", name="kernels-small"),
        _bench("stages", folder, 50, *small, name="stages-small"),
        _bench(
            "end_to_end", folder, 120, *small, "--requests", "1", "64", "--batch-sizes", "32",
            "--search-s", "1", "--budget-s", "90", "--keep-going", name="end_to_end-small",
        ),
        Part("plot", ("-m", "bench", "plot", str(folder)), 20, always=True),
    ]  # fmt: skip
    return [
        Part(p.name, (*p.command, "--device", "cuda", "--dtype", "bfloat16"), p.limit_s)
        if p.command[:2] == ("-m", "bench") and not p.always
        else p
        for p in parts
    ]


def run_all(kind: str, folder: Path | None, budget_s: float | None) -> int:
    """Run "quick" or "gpu_all"; return 1 if a part was not ok.

    Args:
        folder: for the results; None picks one.
        budget_s: time for all parts; None is the time that the kind is meant to take.
    """
    if kind == "gpu_all" and not torch.cuda.is_available():
        print("--gpu-all needs a CUDA device", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work:
        if kind == "quick":
            folder = folder or Path(tempfile.mkdtemp(prefix="bench-quick-"))
            parts = quick_parts(folder, Path(work))
        else:
            folder = folder or RESULTS / device_folder(torch.device("cuda"))
            parts = gpu_parts(folder, Path(work))
        outcomes = run_parts(parts, folder, budget_s or {"quick": 110, "gpu_all": 460}[kind])
    write_summary(kind, outcomes, folder)
    print_summary(outcomes, folder)
    return 0 if all(outcome.status == "ok" for outcome in outcomes) else 1


def run_parts(parts: Sequence[Part], folder: Path, budget_s: float) -> list[Outcome]:
    """Run the parts one after another, and write a log of each into `folder`."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + budget_s
    outcomes = []
    for part in parts:
        left = part.limit_s if part.always else min(part.limit_s, deadline - time.monotonic())
        if left < 1:
            outcomes.append(Outcome(part.name, "not run", 0.0, part.limit_s))
            continue
        print(f"== {part.name}: {' '.join(part.command)}", flush=True)
        log = folder / "logs" / f"{part.name.replace(' ', '-')}.log"
        start = time.monotonic()
        status = _run(part.command, log, left)
        outcomes.append(Outcome(part.name, status, time.monotonic() - start, left))
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(f"   {line[:160]}" for line in lines[-_TAIL:]), flush=True)
    return outcomes


def print_summary(outcomes: Sequence[Outcome], folder: Path) -> None:
    print(f"\n{'part':<24}{'status':>10}{'seconds':>10}{'limit':>8}")
    for outcome in outcomes:
        print(
            f"{outcome.name:<24}{outcome.status:>10}{outcome.seconds:10.1f}{outcome.limit_s:8.0f}"
        )
    total = sum(outcome.seconds for outcome in outcomes)
    print(f"{total:.0f} s in all; figures, pictures and logs are in {folder}", flush=True)


def write_summary(kind: str, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write the outcomes as one more file of results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [
        Case(o.name, Spread.of([o.seconds]), {"status": o.status, "limit_s": o.limit_s})
        for o in outcomes
    ]
    machine, versions = describe_machine(device), describe_versions()
    Results("summary", machine, versions, {"parts": kind}, {}, cases).write(folder / "summary.json")


def _bench(command: str, folder: Path, limit_s: float, *arguments: str, name: str = "") -> Part:
    name = name or command
    output = ("--json", str(folder / f"{name}.json"))
    return Part(name, ("-m", "bench", command, *arguments, *output), limit_s)


def _run(command: Sequence[str], log: Path, limit_s: float) -> str:
    # In a new session, so that its workers die with it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=_ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return "ok" if process.wait(timeout=limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "killed"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
