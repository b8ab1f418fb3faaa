"""Results of benchmarks in one form: a JSON file that others can compare and draw."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bark_fast.files import writing

RESULTS = Path(__file__).parents[1] / "results"
SCHEMA = 1
_MOST_RUNS = 16
KINDS = (
    "machine", "smoke", "kernels", "stages", "throughput", "end_to_end", "serve", "serve_http",
    "bulk", "precision", "summary",
)  # fmt: skip


class ResultsError(ValueError):
    """Raised for a file without readable results; the message says which file, and why."""


def percentile(values: Sequence[float], p: float) -> float:
    """Return the least of `values` that at least the share `p` (0 .. 1) of them do not exceed."""
    ordered = sorted(values)
    # A little less, because in floating point 0.07 * 100 is above 7.
    return ordered[max(0, math.ceil(p * len(ordered) - 1e-9) - 1)]


@dataclass(frozen=True)
class Spread:
    """Several measurements of one quantity.

    Attributes:
        runs: all measurements in the order they were taken; empty if there are more than a reader
            would look at.
    """

    median: float
    min: float
    max: float
    runs: tuple[float, ...] = ()

    @classmethod
    def of(cls, runs: Sequence[float]) -> Spread:
        """Sum up the measurements in `runs`, at least one."""
        kept = tuple(runs) if len(runs) <= _MOST_RUNS else ()
        return cls(statistics.median(runs), min(runs), max(runs), kept)

    def as_dict(self) -> dict[str, Any]:
        """Return the spread as it stands in a result file."""
        return {**asdict(self), "runs": list(self.runs)}

    def divided(self, n: int) -> Spread:
        """Return the spread of one part, where each run was `n` equal parts."""
        runs = tuple(run / n for run in self.runs)
        return Spread(self.median / n, self.min / n, self.max / n, runs)


@dataclass(frozen=True)
class Case:
    """One thing that was timed.

    Attributes:
        name: the same in every run of the same benchmark, so that runs can be compared.
        seconds: how long it took; less is better.
        values: everything else that is known of it; the names contain the units.
    """

    name: str
    seconds: Spread
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Results:
    """One run of one benchmark.

    Attributes:
        kind: which benchmark, one of KINDS.
        machine, versions: the hardware and the software it ran on.
        settings: the options it was run with; size, dtype and device are among them.
        limits: the limits of the machine, measured right before.
    """

    kind: str
    machine: dict[str, Any]
    versions: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, float]
    cases: list[Case] = field(default_factory=list)

    def write(self, path: Path | None) -> None:
        """Write the results as a JSON file; do nothing if `path` is None."""
        if path is None:
            return
        content = {"schema": SCHEMA, **asdict(self)}
        content["cases"] = [
            {"name": case.name, "seconds": case.seconds.as_dict(), **case.values}
            for case in self.cases
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file that `write` wrote.

        Raises:
            ResultsError: the file is not one of those.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
            raise ResultsError(f"{path} holds no results of schema {SCHEMA}")
        try:
            cases = [_read_case(case) for case in content.pop("cases")]
            return cls(**content, cases=cases)
        except (KeyError, TypeError) as error:
            raise ResultsError(f"{path} holds results with fields missing: {error!r}") from error

    def case(self, name: str) -> Case | None:
        """Return the case of that name, None if there is none."""
        return next((case for case in self.cases if case.name == name), None)


def _read_case(content: dict[str, Any]) -> Case:
    values = dict(content)
    spread = values.pop("seconds")
    seconds = Spread(**{**spread, "runs": tuple(spread["runs"])})
    return Case(values.pop("name"), seconds, values)


def read_folder(folder: Path) -> list[tuple[Path, Results]]:
    """Return all results in a folder, by file name; skip other JSON files."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path, Results.read(path)))
        except ResultsError:
            continue
    return found
