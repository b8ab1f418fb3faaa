"""The aims for a GPU, and what the results of a run say of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.harness.results import Case, Results

Found = Sequence[Results]
"""The results of one folder."""


@dataclass(frozen=True)
class Aim:
    """Something wanted of bark on an H200, the device that the aims were set for.

    Attributes:
        bound: measured must be at most this, or at least, if more is better.
        measured: returns the figure, None if the results do not have it.
        predicted: the name of the prediction of the same figure, if the model of time makes it.
    """

    name: str
    bound: float
    measured: Callable[[Found], float | None]
    more_is_better: bool = False
    predicted: str = ""

    def verdict(self, value: float | None) -> str:
        """Return "met", "MISSED" or "not measured"."""
        if value is None:
            return "not measured"
        met = value >= self.bound if self.more_is_better else value <= self.bound
        return "met" if met else "MISSED"


def _case(found: Found, kind: str, size: str, name: str) -> Case | None:
    for results in found:
        if results.kind == kind and results.settings.get("size") == size:
            case = results.case(name)
            if case is not None:
                return case
    return None


def step_us(size: str, batch: int, context: int = 700) -> Callable[[Found], float | None]:
    """Return the microseconds of a semantic decode step, without its share of a look."""

    def measured(found: Found) -> float | None:
        case = _case(found, "stages", size, f"semantic decode after {context}, B={batch}")
        if case is None:
            return None
        seconds: float = case.values.get("step_without_look_s", case.seconds.median)
        return 1e6 * seconds

    return measured


def audio_rate(size: str, n: int) -> Callable[[Found], float | None]:
    """Return the seconds of audio a second of `n` requests."""
    name = "1 request" if n == 1 else f"{n} mixed requests"
    return _value("throughput", size, name, lambda values: values["audio_s_per_s"])


def times_transformers(size: str, n: int) -> Callable[[Found], float | None]:
    """Return how many times as fast as transformers' best `n` requests are made."""
    name = "1 request" if n == 1 else f"{n} mixed requests"
    return _value("end_to_end", size, name, lambda values: values["ratio"]["median"])


def compiled_late(size: str) -> Callable[[Found], float | None]:
    """Return the kernels that were compiled after warm-up."""

    def measured(found: Found) -> float | None:
        cases = [
            case
            for results in found
            if results.kind == "throughput" and results.settings.get("size") == size
            for case in results.cases
        ]
        if not cases:
            return None
        return sum(len(case.values["compiled_after_warm_up"]) for case in cases)

    return measured


def failed_parts(*names: str) -> Callable[[Found], float | None]:
    """Return how many of these parts of the run were not ok."""

    def measured(found: Found) -> float | None:
        outcomes = [
            case.values["status"]
            for results in found
            if results.kind == "summary"
            for case in results.cases
            if case.name in names and case.values["status"] != "not run"
        ]
        return sum(status != "ok" for status in outcomes) if outcomes else None

    return measured


def _value(
    kind: str, size: str, name: str, read: Callable[[Mapping[str, Any]], float]
) -> Callable[[Found], float | None]:
    def measured(found: Found) -> float | None:
        case = _case(found, kind, size, name)
        return None if case is None else read(case.values)

    return measured


AIMS = (
    Aim("tests that failed (smoke, kernels, gpu)", 0,
        failed_parts("smoke", "kernel tests", "gpu tests")),
    Aim("kernels compiled after warm-up", 0, compiled_late("large")),
    Aim("launches a layer of a decode step", 5, lambda found: None, predicted="launches a layer"),
    *(
        Aim(f"decode step of bark, {rows} rows, us", bound, step_us("large", rows),
            predicted=f"step large {rows}")
        for rows, bound in ((1, 280), (64, 1200))
    ),
    *(
        Aim(f"audio s/s of bark, {n} mixed requests", 150, audio_rate("large", n),
            more_is_better=True, predicted=f"audio large {n}")
        for n in (64, 256)
    ),
    *(
        Aim(f"times transformers, {n} requests of bark", bound, times_transformers("large", n),
            more_is_better=True)
        for n, bound in ((1, 15), (64, 10))
    ),
)  # fmt: skip
