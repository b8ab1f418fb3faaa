"""Run the parts of a long benchmark one after another, each in a process that may fail or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TAIL = 12  # lines of a part's output that are shown; the rest is in its log
_TAIL_IN_SUMMARY = 3


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
    """The outcome of a part: "ok", "failed", "killed" or "not run"; `tail` ends its output."""

    name: str
    status: str
    seconds: float
    limit_s: float
    tail: tuple[str, ...] = ()


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    budget_s: float,
    after_each: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Run the parts one after another, and write a log of each into `folder`.

    Args:
        after_each: called with the outcomes so far.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + budget_s
    outcomes: list[Outcome] = []
    for part in parts:
        after_each(outcomes)
        left = part.limit_s if part.always else min(part.limit_s, deadline - time.monotonic())
        if left < 1:
            outcomes.append(Outcome(part.name, "not run", 0.0, part.limit_s))
            continue
        print(f"== {part.name}: {' '.join(part.command)}", flush=True)
        log = folder / "logs" / f"{part.name.replace(' ', '-')}.log"
        start = time.monotonic()
        status = _run(part.command, log, left)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = tuple(line[:160] for line in lines if line.strip())[-_TAIL:]
        outcomes.append(Outcome(part.name, status, time.monotonic() - start, left, tail))
        print("\n".join(f"   {line}" for line in tail), flush=True)
    after_each(outcomes)
    return outcomes


def print_outcomes(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Print a line for each part, and the last lines of those that went wrong."""
    print(f"\n{'part':<24}{'status':>10}{'seconds':>10}{'limit':>8}")
    for outcome in outcomes:
        print(
            f"{outcome.name:<24}{outcome.status:>10}{outcome.seconds:10.1f}{outcome.limit_s:8.0f}"
        )
        if outcome.status in ("failed", "killed"):
            print("\n".join(f"    {line}" for line in outcome.tail[-_TAIL_IN_SUMMARY:]))
    total = sum(outcome.seconds for outcome in outcomes)
    print(f"{total:.0f} s in all; figures, pictures and logs are in {folder}", flush=True)


def _run(command: Sequence[str], log: Path, limit_s: float) -> str:
    # In a new session, so that its workers die with it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
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
