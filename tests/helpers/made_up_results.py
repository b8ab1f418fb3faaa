"""Results that nobody measured."""

from __future__ import annotations

from typing import Any

from bench.harness.results import Case, Results, Spread


def results(kind: str, cases: list[Case], **settings: Any) -> Results:
    return Results(
        kind,
        machine={"device": "a chip", "cpu": "a chip", "cores": 2, "threads": 2},
        versions={"torch": "2", "triton": None},
        settings={"size": "small", "dtype": "bfloat16", **settings},
        limits={
            "copy_bytes_per_s": 1e9,
            "read_bytes_per_s": 2e9,
            "flops_per_s": 1e12,
            "flops_per_s_float32": 1e11,
        },
        cases=cases,
    )


def all_kinds() -> list[Results]:
    """Return results of each kind, with the fields that the benchmarks fill."""
    spread = Spread.of([1.0, 2.0, 4.0])

    def side(seconds: float) -> dict[str, Any]:
        return {
            "seconds": Spread.of([seconds]).as_dict(),
            "first_audio_s": Spread.of([seconds]).as_dict(),
            "audio_s_per_s": 2 / seconds,
            "real_time_factor": seconds / 2,
            "latency_p50_s": seconds,
            "latency_p95_s": seconds,
            "stage_s": {"semantic": 0.2, "coarse": 0.3, "fine": 0.4, "codec": 0.1},
            "peak_bytes": 2**30,
        }

    whole = [
        Case(
            f"{n} requests",
            spread,
            {
                "requests": n,
                "audio_s": 2.0 * n,
                "floor_s": 0.5,
                "ratio": spread.as_dict(),
                "bark_fast": side(1.0),
                "transformers": side(3.0) | {"batch_size": 4, "attention": "eager"},
            },
        )
        for n in (1, 16)
    ]
    floor = {"floor_s": 0.5, "of_floor": 0.25, "unit": "tokens", "per_s": 3.0}
    stage = Case("semantic decode", spread, {"stage": "semantic", "batch": 1, **floor})
    kernel = Case("qkv", spread, {**floor, "torch": spread.as_dict(), "ratio": 1.0})
    served = [
        Case(
            f"load {rate}",
            spread,
            {
                "rate_per_s": rate,
                "requests": 9,
                "latency_p50_s": 1.0,
                "latency_p95_s": 2.0,
                "latency_max_s": 3.0,
                "pending_mean": 1.0,
                "audio_s_per_s": 2.0,
            },
        )
        for rate in (0.5, 1.0)
    ]
    bulk = [
        Case("Bark.generate", spread, {"rows": 9, "audio_s": 9.0, "rows_per_s": 4.5}),
        Case(
            "bulk",
            spread,
            {
                "rows": 9,
                "rows_per_s": 4.5,
                "ratio": spread.as_dict(),
                "cpu_ratio": spread.as_dict(),
            },
        ),
        Case("killed", spread, {"rows": 9, "rows_per_s": 4, "equal": True, "written_twice": 2}),
    ]
    through = {
        "seconds": spread.as_dict(), "requests_per_s": 2.0, "audio_s_per_s": 4.0, "cpu_s": 1.0,
        "first_audio_p50_s": 1.0, "first_audio_p95_s": 2.0, "latency_p50_s": 1.5,
        "latency_p95_s": 2.5,
    }  # fmt: skip
    over_http = [
        Case(
            "all at once",
            spread,
            {
                "requests": 4,
                "rate_per_s": None,
                "audio_s": 8.0,
                "library": through,
                "http": through,
                "ratio": spread.as_dict(),
                "cpu_ms_a_request": spread.as_dict(),
                "latency_ms_a_request": spread.as_dict(),
                "load_average": 0.5,
            },
        ),
        Case(
            "first audio, http",
            spread,
            {"sentences": 6, "alone": spread.as_dict(), "ratio": spread.as_dict(),
             "load_average": 0.5},
        ),
        Case(
            "answers alone, pcm",
            spread,
            {"requests": 4, "requests_per_s": 2.0, "audio_s_per_s": 8.0,
             "cpu_ms_a_request": spread.as_dict(), "load_average": 0.5},
        ),
    ]  # fmt: skip
    return [
        results("end_to_end", whole),
        results("stages", [stage]),
        results("kernels", [kernel]),
        results("serve", served),
        results("bulk", bulk),
        results("serve_http", over_http),
    ]
