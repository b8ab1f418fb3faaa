"""Draw pictures and write tables of a folder of results.

    python -m bench plot bench/results/DEVICE

Each JSON file gets the pictures that its kind has, named after it, and all of them one results.md:
end to end, throughput by concurrency and time by stage; stages and kernels, the distance from the
floor; serve, latency by arrival rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness.report import write_report
from bench.harness.results import Case, Results, read_folder

_BLUE, _ORANGE, _GREY = "#1f6fb4", "#d98032", "#8a8a8a"
_STAGES = {"semantic": "#1f6fb4", "coarse": "#6aaed6", "fine": "#d98032", "codec": "#8a8a8a"}
_SIZE, _DPI = (6.4, 3.6), 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="with the JSON files; the pictures go there too")


def run(arguments: argparse.Namespace) -> int:
    made = draw_folder(arguments.folder)
    report = write_report(arguments.folder)
    for path in [*made, *([report] if report else [])]:
        print(path)
    if not made:
        print(f"no results in {arguments.folder}", file=sys.stderr)
    return 0 if made else 1


def draw_folder(folder: Path) -> list[Path]:
    """Draw all pictures of the results in `folder` beside them; return their paths."""
    made = []
    for path, results in read_folder(folder):
        if not results.cases:
            continue
        for name, draw in _PICTURES.get(results.kind, {}).items():
            target = path.with_name(f"{path.stem}-{name}.png")
            _draw(draw, results, target)
            made.append(target)
    return made


def _draw(draw: Callable[[Any, Results], None], results: Results, target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no screen
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=_SIZE)
    draw(axes, results)
    axes.spines[["top", "right"]].set_visible(False)
    settings = results.settings
    axes.set_title(
        f"{results.machine['device']}, {settings['size']}, {settings['dtype']}", fontsize=9
    )
    figure.savefig(target, dpi=_DPI, bbox_inches="tight")
    pyplot.close(figure)


def draw_throughput(axes: Any, results: Results) -> None:
    """Draw seconds of audio a second by the number of requests made together."""
    counts = [str(case.values["requests"]) for case in results.cases]
    for offset, key, colour in ((-0.2, "bark_fast", _BLUE), (0.2, "transformers", _ORANGE)):
        heights = [case.values[key]["audio_s_per_s"] for case in results.cases]
        name = "bark-fast" if key == "bark_fast" else "transformers, best static batch"
        bars = axes.bar(
            [i + offset for i in range(len(counts))], heights, 0.38, label=name, color=colour
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1.0, color=_GREY, linestyle="--", linewidth=1)
    axes.text(len(counts) - 0.5, 1.0, "real time", fontsize=8, va="bottom", ha="right")
    axes.set_xticks(range(len(counts)), counts)
    axes.set_xlabel("requests at once")
    axes.set_ylabel("seconds of audio a second")
    axes.legend(frameon=False, fontsize=8)


def draw_stage_times(axes: Any, results: Results) -> None:
    """Draw where the time of the least workload goes, in both engines and at the floor."""
    case = min(results.cases, key=lambda case: case.values["requests"])
    sides = {"bark-fast": case.values["bark_fast"], "transformers": case.values["transformers"]}
    for row, side in enumerate(sides.values()):
        left = 0.0
        for stage, colour in _STAGES.items():
            seconds = side["stage_s"].get(stage, 0.0)
            label = stage if row == 0 else None
            axes.barh(row, seconds, left=left, color=colour, label=label, height=0.6)
            left += seconds
    axes.axvline(case.values["floor_s"], color="black", linestyle="--", linewidth=1, label="floor")
    axes.set_yticks(range(len(sides)), list(sides))
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds ({case.name}, {case.values['audio_s']:.1f} s of audio)")
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.08))


def draw_floors(axes: Any, results: Results) -> None:
    """Draw each case's time as a multiple of the least that it can take."""
    cases = results.cases
    multiples = [case.seconds.median / case.values["floor_s"] for case in cases]
    axes.figure.set_size_inches(_SIZE[0], 1.2 + 0.19 * len(cases))
    bars = axes.barh([case.name for case in cases], multiples, color=_BLUE, height=0.7)
    axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.set_xlim(left=0.5)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("time as a multiple of the floor (1: the measured limit of this machine)")


def draw_latency(axes: Any, results: Results) -> None:
    """Draw the time to audio by arrival rate."""
    cases: list[Case] = sorted(results.cases, key=lambda case: case.values["rate_per_s"])
    rates = [case.values["rate_per_s"] for case in cases]
    for which, colour in (("max", _GREY), ("p95", _ORANGE), ("p50", _BLUE)):
        seconds = [case.values[f"latency_{which}_s"] for case in cases]
        axes.plot(rates, seconds, marker="o", label=which, color=colour)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests a second, arriving at random")
    axes.set_ylabel("seconds from arrival to audio")
    axes.legend(frameon=False, fontsize=8)


_PICTURES: dict[str, dict[str, Callable[[Any, Results], None]]] = {
    "end_to_end": {"throughput": draw_throughput, "time-by-stage": draw_stage_times},
    "stages": {"floor": draw_floors},
    "kernels": {"floor": draw_floors},
    "serve": {"latency": draw_latency},
}
