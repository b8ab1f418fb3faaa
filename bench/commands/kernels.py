"""Time each operation by itself, side by side with torch, and compare it with its floor.

    python -m bench kernels --size large --dtype bfloat16 --json bench/results/DEVICE/kernels.json

On a GPU the Triton kernel is timed in a CUDA graph, against torch (cuBLAS,
scaled_dot_product_attention, F.layer_norm; for what torch has no call for, the plain reference;
with --compile also what torch.compile makes of it, and the better one counts). On a CPU it is the
CPU's path that is timed. The floor of a case is the larger of its bytes over the measured bandwidth
and its FLOPs over the measured matrix rate. With `--impl int8` (a CPU, weights of products in 8
bits) the floor stays that of --dtype: twice bfloat16's rate is 200 % of it.

`pytest bench/test_kernels.py` runs the same cases under pytest-benchmark.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from bark_fast.devices import resolve_impl
from bench.cases.kernels import SHAPES, CaseMaker, KernelCase
from bench.harness.arguments import add_common, begin, device_of, dtype_of
from bench.harness.machine import Limits, cache_bytes
from bench.harness.results import Case
from bench.harness.timing import time_kernel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, sizes=tuple(SHAPES))
    parser.add_argument("--compile", action="store_true", help="time torch.compile's version too")
    parser.add_argument("--only", default="", help="cases whose name contains this")


def run(arguments: argparse.Namespace) -> int:
    results, limits = begin("kernels", arguments)
    device, dtype = device_of(arguments), dtype_of(arguments)
    impl = "int8" if arguments.impl == "int8" else resolve_impl(arguments.impl, device, dtype)
    results.settings["impl"] = impl
    maker = CaseMaker(SHAPES[arguments.size], dtype, device, impl, cache_bytes=cache_bytes(device))
    print(
        f"{'case':<34}{'floor us':>10}{impl + ' us':>11}{'of floor':>9}{'torch us':>10}{'ratio':>7}"
    )
    failed = 0
    with torch.inference_mode():
        for case in maker.all():
            if arguments.only not in case.name:
                continue
            try:
                results.cases.append(measure(case, limits, device, arguments))
            except RuntimeError as error:  # a launch failed; the others are still worth knowing
                failed += 1
                print(f"{case.name:<34}FAILED: {error}", flush=True)
                continue
            print_case(results.cases[-1])
            results.write(arguments.json)
    return 1 if failed else 0


def measure(
    case: KernelCase, limits: Limits, device: torch.device, arguments: argparse.Namespace
) -> Case:
    seconds = time_kernel(case.run, device, runs=arguments.runs)
    plain = time_kernel(case.run_torch, device, runs=arguments.runs)
    values: dict[str, Any] = {"torch": plain.as_dict()}
    best = plain.median
    if arguments.compile:
        compiled = torch.compile(case.run_torch, dynamic=False)
        values["torch_compile"] = time_kernel(compiled, device, runs=arguments.runs).as_dict()
        best = min(best, values["torch_compile"]["median"])
    floor_s = limits.floor_s(case.n_bytes, case.flops)
    values |= {
        "floor_s": floor_s,
        "of_floor": floor_s / seconds.median,
        "ratio": best / seconds.median,
        "bytes": case.n_bytes,
        "flops": case.flops,
    }
    return Case(case.name, seconds, values)


def print_case(case: Case) -> None:
    values, seconds = case.values, case.seconds.median
    print(
        f"{case.name:<34}{values['floor_s'] * 1e6:10.1f}{seconds * 1e6:11.1f}"
        f"{values['of_floor']:9.0%}{values['ratio'] * seconds * 1e6:10.1f}{values['ratio']:7.2f}",
        flush=True,
    )
