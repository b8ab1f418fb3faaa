"""Compare two runs of one benchmark, case by case, and find what became slower.

    python -m bench compare before.json after.json --threshold 10

Exit status 1 if a case became slower by more than the threshold, 2 if the two runs cannot be
compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.harness.results import Results, ResultsError

_MUST_AGREE = ("size", "dtype")


@dataclass(frozen=True)
class Change:
    """One case in both runs; `ratio` is the second's median time over the first's.

    Attributes:
        beyond_spread: every run of the second was slower than every run of the first.
    """

    name: str
    before_s: float
    after_s: float
    beyond_spread: bool

    @property
    def ratio(self) -> float:
        return self.after_s / self.before_s


def mismatches(before: Results, after: Results) -> list[str]:
    """Return the reasons why the two cannot be compared; empty if they can."""
    found = []
    if before.kind != after.kind:
        found.append(f"benchmark: {before.kind} and {after.kind}")
    devices = before.machine.get("device"), after.machine.get("device")
    if devices[0] != devices[1]:
        found.append(f"device: {devices[0]} and {devices[1]}")
    for key in _MUST_AGREE:
        values = before.settings.get(key), after.settings.get(key)
        if values[0] != values[1]:
            found.append(f"{key}: {values[0]} and {values[1]}")
    return found


def compare(before: Results, after: Results) -> list[Change]:
    """Return the cases that both runs have, in the order of the first."""
    changes = []
    for case in before.cases:
        other = after.case(case.name)
        if other is not None:
            beyond = other.seconds.min > case.seconds.max
            changes.append(
                Change(case.name, case.seconds.median, other.seconds.median, beyond_spread=beyond)
            )
    return changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=10.0, help="per cent, default 10")
    parser.add_argument(
        "--force", action="store_true", help="compare different machines, sizes or dtypes too"
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        before, after = Results.read(arguments.before), Results.read(arguments.after)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    different = mismatches(before, after)
    if different and not arguments.force:
        print("not comparable (--force compares them all the same):", file=sys.stderr)
        print("\n".join(f"  {line}" for line in different), file=sys.stderr)
        return 2
    changes = compare(before, after)
    if not changes:
        print("the two runs have no case in common", file=sys.stderr)
        return 2
    worst = 1 + arguments.threshold / 100
    print(f"{'case':<40}{'before s':>12}{'after s':>12}{'ratio':>8}")
    for change in changes:
        note = ""
        if change.ratio > worst:
            note = "  SLOWER" if change.beyond_spread else "  SLOWER (within the runs' spread)"
        print(
            f"{change.name:<40}{change.before_s:12.3g}{change.after_s:12.3g}{change.ratio:8.2f}"
            + note
        )
    slower = sum(change.ratio > worst for change in changes)
    missing = len(before.cases) - len(changes)
    print(
        f"{len(changes)} cases, {slower} slower by more than {arguments.threshold:g} %"
        + (f", {missing} missing in the second" if missing else "")
    )
    return 1 if slower else 0
