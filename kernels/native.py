"""The fastest CPU path: `native.c`, compiled at first use and called through ctypes.

A decode step of Bark is some fifty products of one row, which read the weights once. Here a product
takes its layer norm, its residual and the writing of keys and values along, one query's attention
reads its pages where they lie, and attention over a whole window keeps its scores in the cache.

Measured on 2 cores (AMD EPYC, Zen 5, torch 2.13), in ms, against what `cpu.py` does:

                                              float32         bfloat16
    four products of 12 layers, 1 row       8.7 /  7.6      4.8 /  3.7   (reading: 6.2 / 3.1)
        16 rows                            11.4 / 10.8      6.0 /  5.2
        1 024 rows                          384 /  392      191 /  190
    fine attention, 1 024 frames           18.4 /  8.9     18.8 /  5.7
    decode attention, 16 x 600 keys         2.3 /  0.8      5.7 /  0.4

It needs gcc (as triton does), an x86 CPU with AVX-512 and a torch that runs on libgomp, whose
threads it shares: two pools of threads would fight for the cores. `why_not` says what is missing;
then `cpu.py` serves.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_FOLDER = Path(__file__).parent
_SOURCES = ("native.c", "native.h")
# Contraction is off so that only what is written as a fused multiply-add is one.
_COMPILE = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-ffp-contract=off")


class _UnavailableError(Exception):
    """Why this machine cannot use it."""


@dataclass(frozen=True)
class PackedWeight:
    """A weight [N, K] in the panels of `native.c`; serves `linear` alone."""

    panels: Tensor  # uint8
    shape: torch.Size
    dtype: torch.dtype


def why_not(dtype: torch.dtype) -> str | None:
    """What keeps this machine from running `dtype` here; None if nothing does."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it has float32 and bfloat16, not {dtype}"
    try:
        library = _load()
    except _UnavailableError as error:
        return str(error)
    if dtype == torch.bfloat16:
        if not library.has_bfloat16():
            return "bfloat16 needs a CPU with avx512_bf16"
        if "amx_bf16" in _cpu_flags():
            return "oneDNN has the matrix tiles (amx_bf16) of this CPU"
    return None


def pack(weight: Tensor) -> PackedWeight:
    """weight [N, K] on the CPU, in panels."""
    n, k = weight.shape
    weight = weight.contiguous()
    half = weight.dtype == torch.bfloat16
    library = _load()
    # Rows start at whole vectors, so that a load never spans two cache lines.
    raw = torch.empty(library.packed_bytes(half, n, k) + 64, dtype=torch.uint8)
    panels = raw[-raw.data_ptr() % 64 :]
    library.pack(half, panels.data_ptr(), weight.data_ptr(), n, k)
    return PackedWeight(panels, weight.shape, weight.dtype)


def fused_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, Tensor | None] | None,
    gelu: bool,
    residual: Tensor | None,
    eps: float,
) -> Tensor:
    """See `bark_fast.kernels.fused_linear`."""
    y = _linear(x, weight, bias, norm, None if gelu else residual, eps)
    if not gelu:
        return y
    y = F.gelu(y)
    return y if residual is None else y.add_(residual)


def qkv_to_pages(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, Tensor | None],
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    eps: float,
) -> Tensor:
    """See `bark_fast.kernels.qkv_to_pages`; the result is a view with a row stride of 3 C."""
    y = _linear(x, weight, bias, norm, None, eps, pages=(k_pages, v_pages, slots))
    _, heads, _, d = k_pages.shape
    return y.view(len(x), 3, heads, d)[:, 0]


def _linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    norm: tuple[Tensor, Tensor | None] | None,
    residual: Tensor | None,
    eps: float,
    pages: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    rows, (n, k) = len(x), weight.shape
    x = x.contiguous()
    y = torch.empty(rows, n, dtype=x.dtype)
    norm_weight, norm_bias = norm or (None, None)
    k_pages, v_pages, slots = pages or (None, None, None)
    _, heads, page_size, d = (0, 0, 0, 0) if k_pages is None else k_pages.shape
    failed = _load().linear(
        weight.dtype == torch.bfloat16, y.data_ptr(), x.data_ptr(), weight.panels.data_ptr(),
        _address(bias), _address(norm_weight), _address(norm_bias), eps, _address(residual),
        rows, n, k, _address(k_pages), _address(v_pages), _address(slots), heads, page_size, d,
    )  # fmt: skip
    return _made(y, failed)


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    block_tables: Tensor,
    query_starts: Tensor | None,
    kv_lengths: Tensor,
) -> Tensor:
    """See `bark_fast.kernels.paged_attention`."""
    _, heads, page_size, d = k_pages.shape
    out = torch.empty(len(q), heads, d, dtype=q.dtype)
    half = q.dtype == torch.bfloat16
    pages = (k_pages.data_ptr(), v_pages.data_ptr(), block_tables.data_ptr())
    sizes = (len(kv_lengths), block_tables.stride(0), page_size, heads, d)
    if query_starts is None:
        q = q.contiguous()
        failed = _load().decode_attention(
            half, out.data_ptr(), q.data_ptr(), *pages, kv_lengths.data_ptr(), *sizes
        )
    else:
        failed = _load().paged_attention(
            half, out.data_ptr(), q.data_ptr(), q.stride(0), *pages, query_starts.data_ptr(),
            kv_lengths.data_ptr(), *sizes,
        )  # fmt: skip
    return _made(out, failed)


def bidirectional_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `bark_fast.kernels.bidirectional_attention`."""
    batch, tokens, heads, d = q.shape
    strides = (tokens * q.stride(1), q.stride(1), d, 1)
    if any(t.stride() != strides for t in (q, k, v)):
        q, k, v = (t.contiguous() for t in (q, k, v))
    out = torch.empty(batch, tokens, heads, d, dtype=q.dtype)
    starts = torch.arange(0, (batch + 1) * tokens, tokens)
    lengths = torch.full((batch,), tokens)
    failed = _load().bidirectional_attention(
        q.dtype == torch.bfloat16, out.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr(),
        q.stride(1), starts.data_ptr(), lengths.data_ptr(), batch, tokens, heads, d,
    )  # fmt: skip
    return _made(out, failed)


def _made(result: Tensor, failed: int) -> Tensor:
    if failed:
        raise MemoryError("no memory left for a product's or attention's intermediate results")
    return result


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# Compiling and loading --------------------------------------------------------------------------


@functools.cache
def _load() -> ctypes.CDLL:
    """The library, compiled if this machine has not done it yet."""
    if platform.machine() not in ("x86_64", "AMD64") or "avx512bw" not in _cpu_flags():
        raise _UnavailableError("it needs an x86 CPU with AVX-512")
    # Its threads are torch's: what is undefined in our library is found in this one.
    ctypes.CDLL(_openmp_of_torch(), mode=ctypes.RTLD_GLOBAL)
    try:
        library = ctypes.CDLL(str(_compiled()))
    except OSError as error:
        raise _UnavailableError(f"what was compiled does not load: {error}") from error
    pointer, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name, returns, takes in (
        ("has_bfloat16", integer, ()),
        ("packed_bytes", number, (integer, number, number)),
        ("pack", None, (integer, pointer, pointer, number, number)),
        (
            "linear",
            integer,
            (
                *(integer, *[pointer] * 6, ctypes.c_float, pointer),
                *([number] * 3 + [pointer] * 3 + [number] * 3),
            ),
        ),
        (
            "paged_attention",
            integer,
            (integer, pointer, pointer, number, *[pointer] * 5, *[number] * 5),
        ),
        ("decode_attention", integer, (integer, *[pointer] * 6, *[number] * 5)),
        (
            "bidirectional_attention",
            integer,
            (integer, *[pointer] * 4, number, *[pointer] * 2, *[number] * 4),
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = returns, takes
    return library


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _openmp_of_torch() -> str:
    """The OpenMP runtime that torch has loaded into this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError as error:
        raise _UnavailableError("it needs Linux") from error
    found = re.search(r"(/\S*/libgomp[^/\s]*)$", maps, flags=re.MULTILINE)
    if not found:
        raise _UnavailableError("torch does not run on libgomp here")
    return found[1]


def _compiled() -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise _UnavailableError("no C compiler was found (gcc)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    about = [
        *((_FOLDER / name).read_text() for name in _SOURCES),
        version,
        *_COMPILE,
        *sorted(_cpu_flags()),
    ]
    key = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bark-fast"
    library = folder / f"native-{key}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            object_file, shared = Path(partial) / "native.o", Path(partial) / "native.so"
            # Linked without -fopenmp: that would bring the compiler's own libgomp along.
            for command in (
                [compiler, *_COMPILE, "-c", str(_FOLDER / _SOURCES[0]), "-o", str(object_file)],
                [compiler, "-shared", str(object_file), "-lm", "-o", str(shared)],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise _UnavailableError(f"{compiler} failed: {done.stderr.strip()[-500:]}")
            os.replace(shared, library)
    except OSError as error:
        raise _UnavailableError(f"it could not be compiled in {folder}: {error}") from error
    return library
