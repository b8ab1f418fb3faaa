"""The native CPU kernels as other CPUs have them: against an emulation of AVX-512, and for AVX2."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bark_fast.kernels.cpu import build

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
