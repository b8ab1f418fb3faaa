"""Write the results of a folder as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bark_fast.files import writing
from bench.harness.results import Case, Results, read_folder


def write_report(folder: Path) -> Path | None:
    """Write `results.md` beside the JSON files; return its path, None if there are no results."""
    found = [(path, r) for path, r in read_folder(folder) if r.kind in _TABLES]
    if not found:
        return None
    target = folder / "results.md"
    with writing(target) as file:
        file.write(render([results for _, results in found]).encode())
    return target


def render(all_results: Sequence[Results]) -> str:
    """Return a Markdown page with one section for each of the results."""
    first = all_results[0]
    versions = ", ".join(
        f"{name} {version}" for name, version in first.versions.items() if version is not None
    )
    lines = [f"# {first.machine['device']}", "", f"{_machine(first.machine)}. {versions}.", ""]
    for results in all_results:
        lines += [f"## {_title(results)}", "", _limits(results), ""]
        lines += [*_TABLES[results.kind](results.cases), ""]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, its first column left-aligned, the others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]


def _machine(machine: dict[str, Any]) -> str:
    text = f"{machine['cores']} cores of {machine['cpu']}, {machine['threads']} threads"
    if "gpu_memory_gib" in machine:
        text = f"{machine['gpu_memory_gib']} GiB; host: {text}"
    return text


def _title(results: Results) -> str:
    settings = results.settings
    return f"{results.kind.replace('_', ' ')}, {settings['size']}, {settings['dtype']}"


def _limits(results: Results) -> str:
    limits = results.limits
    return (
        f"Measured limits: copy {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"read {limits['read_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"{results.settings['dtype']} {limits['flops_per_s'] / 1e12:.3g} TFLOP/s, "
        f"float32 {limits['flops_per_s_float32'] / 1e12:.3g} TFLOP/s."
    )


def end_to_end_sides(values: Mapping[str, Any]) -> list[str]:
    """Return the engines that a case of `end_to_end` has figures of."""
    return [n for n in ("bark_fast", "bark_fast_int8", "transformers") if n in values]


def _end_to_end(cases: Sequence[Case]) -> list[str]:
    rows = []
    for case in cases:
        v = case.values
        for name in end_to_end_sides(v):
            side = v[name]
            ratio = v["ratio"] if name == "bark_fast" else side.get("ratio")
            first = side.get("first_audio_s")
            how = ""
            if name == "transformers":
                how = f" ({side['attention']}, batches of {side['batch_size']})"
            rows.append(
                [
                    f"{case.name}, {v['audio_s']:.1f} s of audio",
                    name.replace("_", "-") + how,
                    _spread(side["seconds"], "{:.2f}"),
                    f"{side['audio_s_per_s']:.2f}",
                    f"{side['real_time_factor']:.2f}",
                    f"{first['median']:.2f}" if first else "",
                    f"{side['latency_p50_s']:.2f} / {side['latency_p95_s']:.2f}",
                    f"{side['peak_bytes'] / 2**30:.2f}",
                    _spread(ratio, "{:.2f}") if ratio else "",
                ]
            )
    header = (
        "workload", "", "s (min to max)", "audio s/s", "RTF", "first audio s", "p50 / p95 s",
        "peak GiB", "ratio (min to max)",
    )  # fmt: skip
    return table(header, rows)


def _stages(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            case.name,
            f"{case.values['floor_s'] * 1e3:.3f}",
            f"{case.seconds.median * 1e3:.3f}",
            f"{case.values['of_floor']:.0%}",
            f"{case.values['per_s']:.4g} {case.values['unit']}",
        ]
        for case in cases
    ]
    return table(("stage", "floor ms", "ms", "of floor", "a second"), rows)


def _kernels(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            case.name,
            f"{case.values['floor_s'] * 1e6:.1f}",
            f"{case.seconds.median * 1e6:.1f}",
            f"{case.values['of_floor']:.0%}",
            f"{case.values['torch']['median'] * 1e6:.1f}",
            f"{case.values['ratio']:.2f}",
        ]
        for case in cases
    ]
    return table(("operation", "floor us", "us", "of floor", "torch us", "ratio"), rows)


def _serve(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            case.name,
            f"{case.values['rate_per_s']:.3g}",
            str(case.values["requests"]),
            *(f"{case.values[f'latency_{which}_s']:.2f}" for which in ("p50", "p95", "max")),
            f"{case.values['pending_mean']:.1f}",
            f"{case.values['audio_s_per_s']:.2f}",
        ]
        for case in cases
    ]
    header = (
        "arrivals", "a second", "requests", "p50 s", "p95 s", "max s", "under way", "audio s/s",
    )  # fmt: skip
    return table(header, rows)


def _bulk(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            case.name,
            str(case.values["rows"]),
            _spread(case.seconds.as_dict(), "{:.2f}"),
            f"{case.values['rows_per_s']:.2f}",
            f"{case.values['once_s']:.1f}" if "once_s" in case.values else "",
            *(
                _spread(case.values[key], "{:.3f}") if key in case.values else ""
                for key in ("ratio", "cpu_ratio")
            ),
            {True: "yes", False: "NO", None: ""}[case.values.get("equal")],
            str(case.values.get("written_twice", "")),
        ]
        for case in cases
    ]
    header = (
        "what", "rows", "s (min to max)", "rows/s", "s once", "over generate",
        "CPU s over generate's", "equal", "rows written twice",
    )  # fmt: skip
    return table(header, rows)


def _serve_http(cases: Sequence[Case]) -> list[str]:
    """Return a table of the loads, one of the first audio, and one of answers alone."""
    loads, firsts, alone = [], [], []
    for case in cases:
        v = case.values
        load = f"{v['load_average']:.1f}"
        if "library" in v:
            for name in ("library", "http"):
                side = v[name]
                http = name == "http"
                loads.append(
                    [
                        f"{case.name}, {v['requests']} requests, {v['audio_s']:.1f} s of audio",
                        name.replace("http", "HTTP"),
                        _spread(side["seconds"], "{:.2f}"),
                        f"{side['requests_per_s']:.2f}",
                        f"{side['audio_s_per_s']:.2f}",
                        *(
                            f"{side[f'{what}_p50_s']:.2f} / {side[f'{what}_p95_s']:.2f}"
                            for what in ("first_audio", "latency")
                        ),
                        f"{side['cpu_s']:.2f}",
                        _spread(v["ratio"], "{:.3f}") if http else "",
                        _spread(v["latency_ms_a_request"], "{:.0f}") if http else "",
                        _spread(v["cpu_ms_a_request"], "{:.1f}") if http else "",
                        load,
                    ]
                )
        elif "alone" in v:
            firsts.append(
                [
                    case.name,
                    _spread(v["alone"], "{:.3f}"),
                    _spread(case.seconds.as_dict(), "{:.3f}"),
                    _spread(v["ratio"], "{:.2f}"),
                    load,
                ]
            )
        else:
            alone.append(
                [
                    f"{case.name}, {v['requests']} requests",
                    _spread(case.seconds.as_dict(), "{:.2f}"),
                    f"{v['requests_per_s']:.0f}",
                    f"{v['audio_s_per_s']:.0f}",
                    _spread(v["cpu_ms_a_request"], "{:.2f}"),
                    load,
                ]
            )
    lines = table(
        (
            "arrivals", "through", "s (min to max)", "requests/s", "audio s/s",
            "first audio p50 / p95 s", "latency p50 / p95 s", "CPU s", "HTTP / library",
            "more latency, ms", "more CPU a request, ms", "load average",
        ),
        loads,
    )  # fmt: skip
    lines += ["", *table(("", "first sentence alone, s", "of six, s", "ratio", "load average"),
                         firsts)]  # fmt: skip
    header = ("", "s (min to max)", "requests/s", "audio s/s", "CPU ms a request", "load average")
    return [*lines, "", *table(header, alone)]


def _throughput(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            f"{case.name}, {case.values['audio_s']:.1f} s of audio",
            _spread(case.seconds.as_dict(), "{:.2f}"),
            f"{case.values['audio_s_per_s']:.2f}",
            f"{case.values['latency_p50_s']:.2f} / {case.values['latency_p95_s']:.2f}",
            f"{case.values['peak_bytes'] / 2**30:.2f}",
            str(len(case.values["compiled_after_warm_up"])),
        ]
        for case in cases
    ]
    header = ("workload", "s (min to max)", "audio s/s", "p50 / p95 s", "peak GiB", "compiled late")
    return table(header, rows)


def _precision(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            case.name,
            stage,
            f"{case.values[stage]['same_token']:.1%}",
            f"{case.values[stage]['logit_error']:.4f}",
            _spread(seconds, "{:.2f}") if (seconds := case.values[stage].get("seconds")) else "",
            _spread(case.seconds.as_dict(), "{:.2f}") if stage == "semantic" else "",
        ]
        for case in cases
        for stage in ("semantic", "coarse", "fine")
    ]
    header = (
        "precision", "stage", "same token", "logit error", "stage s (min to max)",
        "request s (min to max)",
    )  # fmt: skip
    return table(header, rows)


def _spread(spread: dict[str, Any], form: str) -> str:
    median, least, most = (form.format(spread[key]) for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def _contention(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            case.name,
            _spread(case.seconds.as_dict(), "{:.3f}"),
            f"{case.values['fair_share']:.2f}",
            f"{case.values['ratio']:.2f}",
        ]
        for case in cases
    ]
    header = ("busy processes", "s (min to max)", "fair share", "times what a fair share takes")
    return table(header, rows)


def _load(cases: Sequence[Case]) -> list[str]:
    rows = [
        [
            case.name,
            _spread(case.seconds.as_dict(), "{:.2f}"),
            _spread(case.values["import_s"], "{:.2f}"),
            _spread(
                {key: case.values["peak_bytes"][key] / 2**30 for key in ("median", "min", "max")},
                "{:.2f}",
            ),
            f"{case.values['weight_bytes'] / 2**30:.2f}",
        ]
        for case in cases
    ]
    header = (
        "precision", "load s (min to max)", "import of torch s", "peak GiB, with a request",
        "weights GiB",
    )  # fmt: skip
    return table(header, rows)


_TABLES: dict[str, Callable[[Sequence[Case]], list[str]]] = {
    "throughput": _throughput,
    "end_to_end": _end_to_end,
    "stages": _stages,
    "kernels": _kernels,
    "serve": _serve,
    "bulk": _bulk,
    "contention": _contention,
    "load": _load,
    "serve_http": _serve_http,
    "precision": _precision,
}
