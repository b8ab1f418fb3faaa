"""The native CPU kernels as other CPUs have them: against an emulation of AVX-512, and for AVX2."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bark_fast.kernels.cpu import build, native

HAS_AVX512 = "avx512bw" in build.cpu_flags()
_EMULATION = Path(__file__).parent / "avx512"


def emulated_library() -> Path:
    """Compile native.c with the emulation in place of the compiler's intrinsics (once, 30 s)."""
    text = (_EMULATION / "immintrin.h").read_bytes()
    fast = ("-mavx2", "-mfma") if {"avx2", "fma"} <= build.cpu_flags() else ()
    version = f"-DEMULATION_{hashlib.sha256(text).hexdigest()[:12]}"
    return build.compiled_library(
        ("-O2", "-w", "-DEMULATED_AVX512", *fast, version, "-I", str(_EMULATION))
    )


def halves_library() -> Path:
    """Compile native.c as on a CPU with AVX2 and no AVX-512."""
    return build.compiled_library((*build.OPTIMISED, "-mno-avx512f"))


@contextmanager
def whole_vectors() -> Iterator[None]:
    """Let the native kernels be those of AVX-512: real, or against the emulation."""
    is_real = HAS_AVX512 and native.why_not(torch.float32) is None
    with pytest.MonkeyPatch.context() as patch:
        if not is_real and not torch.cuda.is_available():
            emulated = build.open_library(emulated_library())
            patch.setattr(build, "loaded", lambda: emulated)
        yield
