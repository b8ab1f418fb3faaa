"""Say which aims a folder of results meets, beside what was predicted.

python -m bench aims bench/results/DEVICE
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from bench.cases.aims import AIMS, Found, predict_aims
from bench.cases.code import CompiledCode
from bench.cases.gpus import GPUS
from bench.cases.time_model import TimeModel
from bench.harness.results import read_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="with the JSON files")


def run(arguments: argparse.Namespace) -> int:
    found = [results for _, results in read_folder(arguments.folder)]
    device = found[0].machine["device"] if found else ""
    gpu = next((gpu for name, gpu in GPUS.items() if name in device), GPUS["H200"])
    predicted: dict[str, float] = {}
    if os.environ.get("TRITON_INTERPRET") != "1":  # then nothing can be compiled
        try:
            predicted = predict_aims(TimeModel(gpu, CompiledCode(gpu.capability)))
        except Exception as error:  # what was measured is worth more, and must be seen
            print(f"no predictions: {type(error).__name__}: {error}")
    print(f"predicted for an {gpu.name}, by `python -m bench predict`")
    print("\n".join(screen(found, predicted)))
    return 0


def screen(found: Found, predicted: Mapping[str, float]) -> list[str]:
    """Return one line for each aim: wanted, predicted, measured, and whether it was met."""
    device = found[0].machine["device"] if found else "no results"
    lines = [f"aims, on {device}", f"{'':<44}{'aim':>9}{'predicted':>11}{'measured':>10}"]
    for aim in AIMS:
        value = aim.measured(found)
        wanted = f"{'>=' if aim.more_is_better else '<='} {aim.bound:g}"
        prediction = predicted.get(aim.predicted)
        lines.append(
            f"{aim.name:<44}{wanted:>9}{_figure(prediction):>11}{_figure(value):>10}  "
            f"{aim.verdict(value)}"
        )
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
