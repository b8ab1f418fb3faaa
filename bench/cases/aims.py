"""The aims for a GPU, and what the results of a run say of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import recording
from bench.cases.load import LoadModel, load_of
from bench.cases.time_model import TimeModel
from bench.harness.results import Case, Results, read_folder
from bench.harness.workload import mixed_utterances

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


def stage_us(size: str, name: str) -> Callable[[Found], float | None]:
    """Return the microseconds of a case of `stages`; a step's, without its share of a look."""

    def measured(found: Found) -> float | None:
        case = _case(found, "stages", size, name)
        if case is None:
            return None
        seconds: float = case.values.get("step_without_look_s", case.seconds.median)
        return 1e6 * seconds

    return measured


def measured_on(folder: Path, gpu: str, size: str, name: str) -> float | None:
    """Return what was measured of a case on a GPU: microseconds, or seconds of audio a second.

    Args:
        folder: of all results, with a folder for each device.
    """
    words = gpu.lower().split()
    for of_device in sorted(folder.glob("*")):
        if all(word in of_device.name.split("-") for word in words):
            found = [results for _, results in read_folder(of_device)]
            rate = _value("throughput", size, name, lambda values: values["audio_s_per_s"])
            value = stage_us(size, name)(found)
            return rate(found) if value is None else value
    return None


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
        Aim(f"decode step of bark, B={rows} after {keys}, us", bound,
            stage_us("large", f"semantic decode after {keys}, B={rows}"),
            predicted=f"step {rows} {keys}")
        for rows, keys, bound in ((1, 700, 280), (64, 300, 1200), (64, 700, 1200))
    ),
    *(
        Aim(f"audio s/s of bark, {n} mixed requests", 150, audio_rate("large", n),
            more_is_better=True, predicted=f"audio {n}")
        for n in (64, 256)
    ),
    *(
        Aim(f"times transformers, {n} requests of bark", bound, times_transformers("large", n),
            more_is_better=True)
        for n, bound in ((1, 15), (64, 10))
    ),
)  # fmt: skip


def predict_aims(model: TimeModel) -> dict[str, float]:
    """Return the predictions that aims name."""
    bark = LoadModel(model, "large")
    step = recording.decode_step("large", "semantic", 1, keys=700)
    layers = recording.config_of("large").semantic.num_layers
    found = {
        "launches a layer": float(
            sum(len(op.launches) * op.count // layers for op in step if op.count >= layers)
        )
    }
    for rows, keys in ((1, 700), (64, 300), (64, 700)):
        found[f"step {rows} {keys}"] = bark.step_us("semantic", rows, keys=keys)
    for n in (64, 256):
        load = load_of(mixed_utterances(n), recording.config_of("large"))
        found[f"audio {n}"] = bark.audio_s_per_s(load)
    return found
