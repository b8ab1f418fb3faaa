"""Compiles `csrc/native.c` at first use and loads it.

It needs gcc (as Triton does), an x86 CPU with AVX-512 and a torch that runs on libgomp, whose
threads it shares: two pools of threads would fight for the cores. `load` says what is missing.
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
from collections.abc import Callable, Sequence
from pathlib import Path

from bark_fast.kernels.cpu import operations

SOURCES = Path(__file__).parent / "csrc"
_FILES = ("native.c", "native.h", "native_products.h")
# Contraction is off so that only what is written as a fused multiply-add is one.
_FLAGS = ("-std=gnu11", "-fopenmp", "-fPIC", "-ffp-contract=off")
OPTIMISED = ("-O3", "-march=native")

_OMP_PAUSE_SOFT = 1  # OpenMP 5.0, section 3.2.44: omp_pause_resource_all


class UnavailableError(Exception):
    """The reason why this machine cannot use the native kernels."""


def load() -> ctypes.CDLL:
    """Return the library.

    Raises:
        UnavailableError: this machine cannot use it.
    """
    library = loaded()
    if isinstance(library, UnavailableError):
        raise library
    return library


@functools.cache
def loaded() -> ctypes.CDLL | UnavailableError:
    """Return the library, or why there is none; found out once."""
    try:
        if platform.machine() not in ("x86_64", "AMD64") or "avx512bw" not in cpu_flags():
            raise UnavailableError("it needs an x86 CPU with AVX-512")
        return open_library(compiled_library)
    except UnavailableError as error:
        return error


def open_library(path: Path | Callable[[], Path]) -> ctypes.CDLL:
    """Load a compiled library and check that its structs are those of `operations`.

    Args:
        path: the library's file, or what compiles it.

    Raises:
        UnavailableError: it does not load, or its structs are others.
    """
    # Its threads are torch's: symbols that are undefined in the library are found in this one.
    ctypes.CDLL(openmp_of_torch(), mode=ctypes.RTLD_GLOBAL)
    try:
        library = ctypes.CDLL(str(path() if callable(path) else path))
    except OSError as error:
        raise UnavailableError(f"the compiled library does not load: {error}") from error
    pointer, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name, returns, takes in (
        ("layouts", ctypes.c_char_p, ()),
        ("has_bfloat16", integer, ()),
        ("has_int8", integer, ()),
        ("packed_bytes", number, (integer, number, number)),
        ("pack", None, (integer, pointer, pointer, number, number)),
        ("run", integer, (pointer, number)),
        ("words_of_rows", None, (pointer, pointer, pointer, number, number, number)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = returns, takes
    difference = operations.difference(library.layouts().decode())
    if difference is not None:
        raise UnavailableError(f"the library was compiled for other structs: {difference}")
    return library


def compiled_library(flags: Sequence[str] = OPTIMISED) -> Path:
    """Return the compiled library in the user's cache folder, compiling it if it is not there.

    Args:
        flags: further flags of the compiler.

    Raises:
        UnavailableError: there is no compiler, it fails, or the folder cannot be written.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler was found (gcc)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    about = [
        *((SOURCES / name).read_text() for name in _FILES),
        version,
        *_FLAGS,
        *flags,
        *sorted(cpu_flags()),
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
            source = str(SOURCES / _FILES[0])
            # Linked without -fopenmp: that would bring the compiler's own libgomp along.
            for command in (
                [compiler, *_FLAGS, *flags, "-c", source, "-o", str(object_file)],
                [compiler, "-shared", str(object_file), "-lm", "-o", str(shared)],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise UnavailableError(f"{compiler} failed: {done.stderr.strip()[-500:]}")
            os.replace(shared, library)
    except OSError as error:
        raise UnavailableError(f"it could not be compiled in {folder}: {error}") from error
    return library


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the features of this CPU by the names that Linux has for them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


@functools.cache
def openmp_of_torch() -> str:
    """Return the file of the OpenMP runtime that torch has loaded into this process.

    Raises:
        UnavailableError: it is not libgomp, or the machine does not tell.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError as error:
        raise UnavailableError("it needs Linux") from error
    found = re.search(r"(/\S*/libgomp[^/\s]*)$", maps, flags=re.MULTILINE)
    if not found:
        raise UnavailableError("torch does not run on libgomp here")
    return found[1]


def release_threads() -> None:
    """Give back the OpenMP workers of the calling thread; its next parallel operation makes new
    ones.

    Each thread that computes has workers of its own. As soon as there are more of them than cores,
    libgomp lets all sleep between operations instead of watching for the next, and those of a
    decode step follow within microseconds.
    """
    try:
        pause = ctypes.CDLL(openmp_of_torch()).omp_pause_resource_all
    except (UnavailableError, AttributeError):  # another runtime, or one before OpenMP 5
        return
    pause(_OMP_PAUSE_SOFT)
