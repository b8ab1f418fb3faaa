"""Time each stage by itself, by batch size: latency, throughput, and distance from its floor.

    python -m bench stages --size small --dtype bfloat16 --batches 1 4 16

The engine's decoders (on CUDA with their graphs), fine stage and codec are called as the engine
calls them, and handing tokens to the host is included. A batch is never larger than the engine
would make it on this device. The floor is that of `bench.cases.costs` on the measured limits; the
bandwidth is measured anew before and after each case, and the better one counts, because on a
machine that is shared it drifts by a factor of two within minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

import torch

from bark_fast import Bark, EngineOptions
from bench.cases.stages import KINDS, StageCase, stage_cases
from bench.harness.arguments import add_checkpoint, add_common, begin, device_of, dtype_of
from bench.harness.checkpoint import checkpoint_for
from bench.harness.machine import Limits, Reader
from bench.harness.results import Case
from bench.harness.timing import time_calls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument("--batches", type=int, nargs="+", help="1 4 16, and 64 on CUDA")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[300, 700], help="positions before a decode step"
    )
    parser.add_argument("--semantic-tokens", type=int, default=100, help="length for the codec")
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS)


def run(arguments: argparse.Namespace) -> int:
    results, limits = begin("stages", arguments)
    device, dtype = device_of(arguments), dtype_of(arguments)
    batches = arguments.batches or ([1, 4, 16, 64] if device.type == "cuda" else [1, 4, 16])
    with checkpoint_for(
        arguments.checkpoint, size=arguments.size, seed=arguments.seed, dtype=arguments.dtype
    ) as checkpoint:
        bark = Bark.from_pretrained(
            checkpoint,
            device=device,
            dtype=dtype,
            impl=arguments.impl,
            engine=EngineOptions(max_batch_size=max(batches)),
            local_files_only=True,
        )
    reader = Reader(device)
    print(f"{'case':<34}{'floor ms':>10}{'ms':>10}{'of floor':>10}{'throughput':>22}")
    failed = 0
    with torch.inference_mode():
        for case in stage_cases(
            bark,
            batches,
            kinds=arguments.only,
            contexts=arguments.contexts,
            semantic_tokens=arguments.semantic_tokens,
            size=dtype.itemsize,
        ):
            try:
                results.cases.append(measure(case, limits, reader, device, runs=arguments.runs))
            except RuntimeError as error:  # out of memory, say; the others are still worth knowing
                failed += 1
                print(f"{case.name:<34}FAILED: {error}", flush=True)
                continue
            print_case(results.cases[-1])
            results.write(arguments.json)
    return 1 if failed else 0


def measure(
    case: StageCase, limits: Limits, reader: Reader, device: torch.device, *, runs: int
) -> Case:
    read = reader.bytes_per_s(at_least_s=0.2)
    spread = time_calls(case.run, device, prepare=case.prepare, runs=runs)
    read = max(read, reader.bytes_per_s(at_least_s=0.2))
    limits = replace(limits, copy_bytes_per_s=read, read_bytes_per_s=read)
    seconds = spread.divided(case.steps)
    more: dict[str, Any] = {}
    if case.half is not None and case.steps > 1:
        half = time_calls(case.half, device, prepare=case.prepare, runs=runs)
        rest = case.steps - case.steps // 2
        more["step_without_look_s"] = (spread.median - half.median) / rest
    floor_s = limits.floor_s(case.cost.n_bytes, case.cost.flops, float32=case.stage == "codec")
    return Case(
        case.name,
        seconds,
        {
            "stage": case.stage,
            "batch": case.batch,
            "floor_s": floor_s,
            "of_floor": floor_s / seconds.median,
            "read_bytes_per_s": read,
            "per_s": case.units / seconds.median,
            "unit": case.unit,
            "cost": asdict(case.cost),
            **more,
        },
    )


def print_case(case: Case) -> None:
    values = case.values
    print(
        f"{case.name:<34}{values['floor_s'] * 1e3:10.3f}{case.seconds.median * 1e3:10.3f}"
        f"{values['of_floor']:10.0%}{values['per_s']:10.1f} {values['unit']}/s",
        flush=True,
    )
