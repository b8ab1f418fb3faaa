"""Show what other programs take for the same request; measured elsewhere, by hand."""

from __future__ import annotations

import argparse

from bench.cases.peers import FIGURES, MACHINE
from bench.harness.report import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(arguments: argparse.Namespace) -> int:
    print(
        f"One request of bark-small, 100 semantic tokens, on {MACHINE}; nothing is measured now.\n"
    )
    print("\n".join(shown()))
    return 0


def shown() -> list[str]:
    """Return the lines of a Markdown table."""
    rows = [[figure.program, figure.precision, f"{figure.seconds:g}"] for figure in FIGURES]
    return table(("program", "weights", "s"), rows)
