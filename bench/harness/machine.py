"""Describe the machine that figures are measured on, and measure its limits.

The limits are measured at the start of every run and printed before any timing: a figure without
the limit beside it says nothing. They are the best of several repeats, because a limit is what can
be reached, not what is usual.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bark_fast import kernels
from bench.harness.timing import time_calls

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "triton", "transformers", "numpy", "bark-fast")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Limits:
    """The measured limits of a device.

    Attributes:
        copy_bytes_per_s: when a large buffer is copied, bytes read plus bytes written.
        read_bytes_per_s: when memory is only read, as weights are.
        flops_per_s: in a large matrix product in the dtype of the run.
        flops_per_s_float32: the same in float32, for the parts that are always computed in it.
    """

    copy_bytes_per_s: float
    read_bytes_per_s: float
    flops_per_s: float
    flops_per_s_float32: float

    @property
    def bytes_per_s(self) -> float:
        """The higher of the two bandwidths."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)

    def floor_s(self, n_bytes: float, flops: float, *, float32: bool = False) -> float:
        """Return the least time to move `n_bytes` and compute `flops`, the two overlapped."""
        rate = self.flops_per_s_float32 if float32 else self.flops_per_s
        return max(n_bytes / self.bytes_per_s, flops / rate)

    def as_dict(self) -> dict[str, float]:
        """Return the limits as they stand in a result file."""
        return asdict(self)


def measure_limits(dtype: torch.dtype, device: torch.device) -> Limits:
    """Measure the limits of `device`, which takes a few seconds."""
    copied, read = _bandwidths(device)
    rate = _matrix_rate(dtype, device)
    float32 = rate if dtype == torch.float32 else _matrix_rate(torch.float32, device)
    return Limits(copied, read, rate, float32)


def _bandwidths(device: torch.device) -> tuple[float, float]:
    """Measure the bandwidths of copying and of reading, in bytes a second."""
    reader = Reader(device)
    target = torch.empty_like(reader.source)
    copy_s = _fastest(lambda: target.copy_(reader.source), device)
    return 2 * reader.n_bytes / copy_s, reader.bytes_per_s(at_least_s=0.6)


class Reader:
    """Measures how fast memory is read at the moment it is asked."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Well beyond the caches: 1 GiB and 256 MiB of float32. Not zeros, which some chips move
        # faster.
        self.source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
        self.source.uniform_()
        self._matrix, self._vector = self.source.view(-1, 4096), self.source[:4096].clone()
        self.n_bytes = self.source.numel() * self.source.element_size()

    def bytes_per_s(self, *, at_least_s: float) -> float:
        """Measure the bandwidth of reading: the best of several ways to read."""
        ways = (self.source.sum, self.source.amax, lambda: self._matrix @ self._vector)
        best = min(_fastest(way, self._device, at_least_s=at_least_s / 3) for way in ways)
        return self.n_bytes / best


def _matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the rate of a large matrix product, in FLOPs a second.

    On a CPU the better of torch's product and bark-fast's counts, because torch's BLAS reaches only
    half of what some CPUs can do in float32.
    """
    best = 0.0
    impl = kernels.choose_impl(device, dtype)
    for side in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        ways = [partial(F.linear, a, b)]
        if device.type == "cpu":
            packed = kernels.pack_weight(b, impl=impl)
            ways.append(partial(kernels.fused_linear, a, packed, impl=impl))
        best = max(best, *(2 * side**3 / _fastest(way, device) for way in ways))
    return best


def _fastest(run: Callable[[], object], device: torch.device, *, at_least_s: float = 0.2) -> float:
    return time_calls(lambda _: run(), device, runs=3, at_least_s=at_least_s).min


def device_folder(device: torch.device) -> str:
    """Return the name of the device as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the machine's name, cores, caches and the like."""
    about: dict[str, Any] = {
        "device": device_name(device),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "caches": _cpu_caches(),
        "cpu_flags": _cpu_flags(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
        }
    return about


def describe_versions() -> dict[str, Any]:
    """Return the versions of everything that a figure may depend on."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # tells CPU builds from CUDA ones
    found["git_commit"] = _git_commit()
    return found


def device_name(device: torch.device) -> str:
    """Return the name by which people know the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """Return the CPU's name, with family and model, because clouds hide the rest of it."""
    info = _cpu_info()
    name = info.get("model name", platform.processor() or platform.machine())
    if "cpu family" not in info:
        return name
    return f"{name} (family {info['cpu family']}, model {info.get('model', '?')})"


def cache_bytes(device: torch.device) -> int:
    """Return the size of the largest cache; data that is smaller may not come from memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max((_size(size) for size in _cpu_caches().values()), default=32 * 2**20)


def print_header(device: torch.device, dtype: torch.dtype, limits: Limits) -> None:
    """Print the machine, the versions and the limits, before any timing."""
    versions = describe_versions()
    parts = [f"{name} {versions[name]}" for name in ("torch", "triton", "transformers")]
    print(f"{device_name(device)}, {_usable_cores()} cores, {torch.get_num_threads()} threads")
    print(f"{', '.join(parts)}, commit {versions['git_commit']}")
    print(
        f"limits: copy {limits.copy_bytes_per_s / 1e9:.1f} GB/s, "
        f"read {limits.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"{str(dtype).removeprefix('torch.')} {limits.flops_per_s / 1e12:.3g} TFLOP/s, "
        f"float32 {limits.flops_per_s_float32 / 1e12:.3g} TFLOP/s",
        flush=True,
    )


def _cpu_info() -> dict[str, str]:
    """Return the first processor of /proc/cpuinfo; an empty dict where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _cpu_flags() -> list[str]:
    have = set(_cpu_info().get("flags", "").split())
    return [flag for flag in _CPU_FLAGS if flag in have]


def _cpu_caches() -> dict[str, str]:
    """Return cache sizes as Linux writes them, by level and type: {"L3 unified": "32768K"}."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        caches[f"L{level} {kind.lower()}"] = size
    return caches


def _size(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def _usable_cores() -> int:
    """Count the cores that this process may use, perhaps fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git_commit() -> str | None:
    """Return the commit, with a + if files differ from it; None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
