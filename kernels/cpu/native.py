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
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bark_fast.kernels.ops import LAYER_NORM_EPS, Norm, Weight, noise_positions
from bark_fast.kernels.reference import TorchBackend
from bark_fast.kernels.state import DecodeState, PackedWeight, SamplingMetadata, TokenSpace

_FOLDER = Path(__file__).parent / "csrc"
_SOURCES = ("native.c", "native.h", "native_products.h")
# Contraction is off so that only what is written as a fused multiply-add is one.
_COMPILE = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-ffp-contract=off")


class _UnavailableError(Exception):
    """Why this machine cannot use it."""


def why_not(dtype: torch.dtype, *, int8: bool = False) -> str | None:
    """What keeps this machine from running `dtype` here, with weights in 8 bits if `int8`; None if
    nothing does."""
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
    if int8 and not library.has_int8():
        return "int8 needs a CPU with avx512_vnni"
    return None


def pack(weight: Tensor, *, int8: bool = False) -> PackedWeight:
    """weight [N, K] on the CPU, in panels; with `int8` each row in steps of its largest number
    over 127.

    Raises:
        ValueError: K is odd in bfloat16, which is multiplied by pairs.
    """
    n, k = weight.shape
    if weight.dtype == torch.bfloat16 and k % 2 and not int8:
        raise ValueError(f"a bfloat16 weight [N, K] must have an even K, got {k}")
    weight = weight.contiguous()
    kind = 2 if int8 else 1 if weight.dtype == torch.bfloat16 else 0
    scales = excess = None
    if int8:
        weight = weight.float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        weight = (weight / scales[:, None]).round_().to(torch.int8)
        excess = 128 * weight.sum(dim=1, dtype=torch.int32)
    library = _load()
    # Rows start at whole vectors, so that a load never spans two cache lines.
    raw = torch.empty(library.packed_bytes(kind, n, k) + 64, dtype=torch.uint8)
    panels = raw[-raw.data_ptr() % 64 :]
    library.pack(kind, panels.data_ptr(), weight.data_ptr(), n, k)
    return PackedWeight(panels, weight.shape, scales, excess)


class NativeBackend(TorchBackend):
    """The operations of `native.c`, and plain torch for those that it lacks."""

    int8 = False

    def pack_weight(self, weight: Tensor) -> Weight:
        return pack(weight, int8=self.int8)

    def embedding_sum(
        self, ids: Tensor, tables: Tensor, *, positions: Tensor, position_table: Tensor
    ) -> Tensor:
        ids = ids if ids.stride(1) == 1 else _contiguous(ids)
        streams, rows = ids.shape
        width = tables.shape[2]
        y = torch.empty(rows, width, dtype=tables.dtype)
        _run(
            _EMBEDDING_SUM, y, ids, tables, positions, position_table, streams, rows, width,
            ids.stride(0), tables.stride(0),
        )  # fmt: skip
        return y

    def fused_linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
        residual: Tensor | None = None,
        decode: bool = False,
    ) -> Tensor:
        if not isinstance(weight, PackedWeight):
            return super().fused_linear(
                x, weight, bias, norm=norm, gelu=gelu, residual=residual, decode=decode
            )
        return _linear(x, weight, bias, norm, residual, gelu)

    def qkv_to_pages(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        *,
        norm: Norm,
        k_pages: Tensor,
        v_pages: Tensor,
        slot_mapping: Tensor,
        decode: bool = False,
    ) -> Tensor:
        """Do as `Backend.qkv_to_pages` says; the result is a view with a row stride of 3 C."""
        if not isinstance(weight, PackedWeight):
            return super().qkv_to_pages(
                x, weight, bias, norm=norm, k_pages=k_pages, v_pages=v_pages,
                slot_mapping=slot_mapping, decode=decode,
            )  # fmt: skip
        _, heads, page_size, d = k_pages.shape
        pages = (k_pages, v_pages, slot_mapping, heads, page_size, d)
        y = _linear(x, weight, bias, norm, None, False, *pages)
        return y.view(len(x), 3, heads, d)[:, 0]

    def paged_attention(
        self,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        block_tables: Tensor,
        seq_lens: Tensor,
        max_queries: int,
        max_length: int,
        cu_seqlens_q: Tensor | None = None,
        decode: bool = False,
        workspace: Tensor | None = None,
    ) -> Tensor:
        _check_pairs(q)
        _, heads, page_size, d = k_pages.shape
        out = torch.empty(q.shape[0], heads, d, dtype=q.dtype)
        one_each = decode or cu_seqlens_q is None
        _run(
            _DECODE_ATTENTION if one_each else _PAGED_ATTENTION, out, q, k_pages, v_pages,
            q.stride(0), block_tables, None if one_each else cu_seqlens_q, seq_lens,
            seq_lens.shape[0], block_tables.stride(0), page_size, heads, d,
        )  # fmt: skip
        return out

    def bidirectional_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _check_pairs(q)
        batch, tokens, heads, d = q.shape
        strides = (tokens * q.stride(1), q.stride(1), d, 1)
        if any(t.stride() != strides for t in (q, k, v)):
            q, k, v = (t.contiguous() for t in (q, k, v))
        out = torch.empty(batch, tokens, heads, d, dtype=q.dtype)
        starts = torch.arange(0, (batch + 1) * tokens, tokens)
        lengths = torch.full((batch,), tokens)
        _run(
            _BIDIRECTIONAL_ATTENTION, out, q, k, v, q.stride(1), None, starts, lengths, batch, 0,
            tokens, heads, d,
        )  # fmt: skip
        return out

    def sample(
        self,
        logits: Tensor,
        metadata: SamplingMetadata,
        space: TokenSpace,
        *,
        positions: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor:
        logits = _contiguous(logits)
        rows, columns = logits.shape
        chosen = torch.empty(rows, dtype=torch.int64)
        advanced: tuple[Tensor | int, ...] = ()
        if state is not None:
            advanced = (
                state.finished, state.token_ids, state.positions, state.seq_lens,
                state.slot_mapping, state.num_generated, state.limits, state.block_tables,
                state.history, state.block_tables.stride(0), state.page_size,
                state.history.shape[1], space.first_id,
            )  # fmt: skip
        _run(
            _SAMPLE, chosen, logits, rows, columns, metadata.temperature, metadata.top_p,
            metadata.top_k, metadata.seeds, noise_positions(positions, state),
            metadata.min_eos_p if space.has_end else None,
            metadata.min_new_tokens if space.has_end else None,
            space.stage, space.n_ranges, space.range_size, *advanced, dtype=logits.dtype,
        )  # fmt: skip
        return chosen

    def random_words(self, seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
        width = -(-n_ids // 64) * 64
        words = torch.empty(len(seeds), width, dtype=torch.int32)
        _load().words_of_rows(
            words.data_ptr(), seeds.data_ptr(), positions.data_ptr(), len(seeds), width, stage
        )
        return words[:, :n_ids].to(torch.int64) & 0xFFFFFFFF


class Int8Backend(NativeBackend):
    """The same with the weights of products in 8 bits."""

    int8 = True


def _linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None,
    gelu: bool,
    *pages: Tensor | int,
) -> Tensor:
    n, k = weight.shape
    x = _contiguous(x)
    y = torch.empty(x.shape[0], n, dtype=x.dtype)
    _run(
        _LINEAR, y, x, weight.panels, weight.scales, weight.excess, bias, *(norm or (None, None)),
        residual, _EPS_BITS, gelu, x.shape[0], n, k, *pages,
    )  # fmt: skip
    return y


# Running and recording --------------------------------------------------------------------------

# As in native.c.
_EMBEDDING_SUM, _LINEAR, _PAGED_ATTENTION, _DECODE_ATTENTION, _BIDIRECTIONAL_ATTENTION, _SAMPLE = (
    range(6)
)
_WORDS = 40
_Operation = ctypes.c_int64 * _WORDS

_thread = threading.local()


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Run `step` once and return what repeats its operations, on the same tensors, in one call.

    All that `step` computes must be operations of this file: what torch computes is not repeated.
    """
    operations: list[Any] = []
    tensors: list[Any] = []
    _thread.recording = (operations, tensors)
    try:
        step()
    finally:
        _thread.recording = None
    program = (_Operation * len(operations))(*operations)
    run = _load().run

    def repeat(held: list[Any] = tensors) -> None:
        # Held here, the tensors stay where they are and nobody else is given their memory.
        if run(program, len(program)):
            raise MemoryError(_NO_MEMORY)

    return repeat


_NO_MEMORY = "no memory left for the intermediate results of a product, attention or sampling"


def _run(kind: int, result: Tensor, *arguments: Any, dtype: torch.dtype | None = None) -> None:
    """Run one operation, whose struct's members are the arguments in their order."""
    half = (dtype or result.dtype) == torch.bfloat16
    words = [kind, half, result.data_ptr()]
    for argument in arguments:
        if isinstance(argument, Tensor):
            words.append(argument.data_ptr())
        else:
            words.append(argument or 0)
    operation = _Operation(*words)
    if _load().run(operation, 1):
        raise MemoryError(_NO_MEMORY)
    recording = getattr(_thread, "recording", None)
    if recording is not None:
        recording[0].append(operation)
        recording[1].append((result, arguments))


def _check_pairs(q: Tensor) -> None:
    if q.dtype == torch.bfloat16 and q.shape[-1] % 2:
        raise ValueError(f"bfloat16 heads must have an even size, got {q.shape[-1]}")


def _contiguous(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x
    assert getattr(_thread, "recording", None) is None, "a copy would not be repeated"
    return x.contiguous()


# The 64 bits of the double, as an integer.
_EPS_BITS = int(struct.unpack("q", struct.pack("d", LAYER_NORM_EPS))[0])


def release_threads() -> None:
    """Give back the OpenMP workers of the calling thread; its next parallel operation makes new
    ones.

    Each thread that computes has workers of its own. As soon as there are more of them than cores,
    libgomp lets all sleep between operations instead of watching for the next, and those of a
    decode step follow within microseconds.
    """
    try:
        pause = ctypes.CDLL(_openmp_of_torch()).omp_pause_resource_all
    except (_UnavailableError, AttributeError):  # another runtime, or one before OpenMP 5
        return
    pause(_OMP_PAUSE_SOFT)


_OMP_PAUSE_SOFT = 1  # OpenMP 5.0, section 3.2.44: omp_pause_resource_all

# Compiling and loading --------------------------------------------------------------------------


def _load() -> ctypes.CDLL:
    """The library.

    Raises:
        _UnavailableError: this machine cannot use it.
    """
    library = _loaded()
    if isinstance(library, _UnavailableError):
        raise library
    return library


@functools.cache
def _loaded() -> ctypes.CDLL | _UnavailableError:
    """The library, or why not; found out once."""
    try:
        return _compile_and_load()
    except _UnavailableError as error:
        return error


def _compile_and_load() -> ctypes.CDLL:
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
        ("has_int8", integer, ()),
        ("packed_bytes", number, (integer, number, number)),
        ("pack", None, (integer, pointer, pointer, number, number)),
        ("run", integer, (pointer, number)),
        ("words_of_rows", None, (pointer, pointer, pointer, number, number, number)),
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


@functools.cache
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
