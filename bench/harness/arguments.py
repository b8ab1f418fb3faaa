"""Options that the benchmarks share, and the values they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bark_fast.checkpoint.random import SIZES
from bench.harness.machine import (
    Limits,
    describe_machine,
    describe_versions,
    measure_limits,
    print_header,
)
from bench.harness.results import Results

DTYPES = ("float32", "bfloat16", "float16")


def add_common(parser: argparse.ArgumentParser, *, sizes: tuple[str, ...] = SIZES) -> None:
    """Add the options of every benchmark that measures something."""
    parser.add_argument("--size", default="small", choices=sizes)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--impl", default="auto", help="implementation of bark-fast's kernels")
    parser.add_argument(
        "--threads", type=int, help="torch's threads on a CPU; by default torch chooses"
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each case, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the option of the benchmarks that need weights."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="keep the random weights in this folder; made with --size and --dtype if not there",
    )


def device_of(arguments: argparse.Namespace) -> torch.device:
    """Return the device that was asked for, with its index if it is a CUDA device."""
    device = torch.device(arguments.device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def dtype_of(arguments: argparse.Namespace) -> torch.dtype:
    """Return the dtype that was asked for."""
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    return dtype


def begin(kind: str, arguments: argparse.Namespace) -> tuple[Results, Limits]:
    """Measure and print the machine's limits; return results without cases, and the limits."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device, dtype = device_of(arguments), dtype_of(arguments)
    limits = measure_limits(dtype, device)
    print_header(device, dtype, limits)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    settings = {k: _plain(v) for k, v in vars(arguments).items() if k not in _NOT_SETTINGS}
    results = Results(
        kind, describe_machine(device), describe_versions(), settings, limits.as_dict()
    )
    return results, limits


# They say how a run is done, not what is measured.
_NOT_SETTINGS = ("json", "run", "command", "checkpoint")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
