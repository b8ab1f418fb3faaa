"""Compiles `csrc/native.c` at first use and loads it.

It needs gcc (as Triton does), Linux and an x86 CPU with AVX-512 (for float32 AVX2 and FMA are
enough). `load` says what is missing.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bark_fast.kernels.cpu import operations

SOURCES = Path(__file__).parent / "csrc"
_FILES = ("native.c", "team.h", "native.h", "native_products.h", "halves.h")
# Contraction is off so that only what is written as a fused multiply-add is one.
_FLAGS = ("-std=gnu11", "-pthread", "-fPIC", "-ffp-contract=off")
OPTIMISED = ("-O3", "-march=native")

_COMPILER_LIMIT_S = 300
_DIGEST_BYTES = hashlib.sha256().digest_size


class UnavailableError(Exception):
    """The reason why this machine cannot use an optional part."""


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
        if not suits_cpu():
            raise UnavailableError("it needs Linux on an x86 CPU with AVX2 and FMA, or AVX-512")
        return open_library(compiled_library)
    except UnavailableError as error:
        return error
    except Exception as error:  # whatever it is: there is another way to speak
        return UnavailableError(f"the library could not be made or loaded: {error!r}")


def suits_cpu() -> bool:
    """Return True if this CPU has the instructions that the library needs at least."""
    return platform.machine() == "x86_64" and cpu_flags() >= {"avx2", "fma"}


def open_library(path: Path | Callable[[], Path]) -> ctypes.CDLL:
    """Load a compiled library and check that its structs are those of `operations`.

    Args:
        path: the library's file, or what compiles it.

    Raises:
        UnavailableError: it does not load, or its structs are others.
    """
    try:
        library = ctypes.CDLL(str(path() if callable(path) else path))
    except OSError as error:
        raise UnavailableError(f"the compiled library does not load: {error}") from error
    pointer, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name, returns, takes in (
        ("layouts", ctypes.c_char_p, ()),
        ("has_bfloat16", integer, ()),
        ("has_int8", integer, ()),
        ("packed_bytes", number, (number, number, number, number)),
        ("run", integer, (pointer, number, number)),
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

    Where that folder cannot be written, it is compiled for this process alone.

    Args:
        flags: further flags of the compiler.

    Raises:
        UnavailableError: there is no compiler, or it fails.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler was found (gcc)")
    try:
        folder = cache_folder()
    except UnavailableError:
        folder = _own_folder()
    try:
        about = [
            *((SOURCES / name).read_text(encoding="utf-8") for name in _FILES),
            _run([compiler, "--version"]),
            *_FLAGS,
            *flags,
            *sorted(cpu_flags()),
        ]
        key = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
        library = folder / f"native-{key}.so"
        if not _is_whole(library):
            library = _writable(folder) / library.name
            _compile(compiler, [*_FLAGS, *flags], library)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"it could not be compiled in {folder}: {error}") from error
    return library


def cache_folder() -> Path:
    """Return the folder of this user for what can be made again.

    Raises:
        UnavailableError: the user has no home.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "")
        if not cache.is_absolute():  # as if it were not set: XDG base directory specification
            cache = Path.home() / ".cache"
    except (RuntimeError, KeyError) as error:
        raise UnavailableError(f"no folder for the compiled library: {error}") from error
    if not cache.is_absolute():
        raise UnavailableError(f"no folder for the compiled library: the home is {Path.home()}")
    return cache / "bark-fast"


def _writable(folder: Path) -> Path:
    """Return the folder, made if it was not there, or one of this process if it takes no files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return _own_folder()


@functools.cache
def _own_folder() -> Path:
    """Return a folder of this process and user alone, which ends with the process."""
    folder = tempfile.mkdtemp(prefix="bark-fast-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _compile(compiler: str, flags: Sequence[str], library: Path) -> None:
    """Compile the sources; `library` appears when it is whole."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody may be there to read it
        print("bark-fast: compiling the kernels for this CPU, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as partial:
        object_file, shared = Path(partial) / "native.o", Path(partial) / "native.so"
        source = str(SOURCES / _FILES[0])
        for command in (
            [compiler, *flags, "-c", source, "-o", str(object_file)],
            [compiler, "-shared", "-pthread", str(object_file), "-lm", "-o", str(shared)],
        ):
            _run(command, folder=partial)
        # Behind the last byte that the loader looks at.
        content = shared.read_bytes()
        shared.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(shared, library)


def _is_whole(library: Path) -> bool:
    """Return True if there is a file with nothing but what `_compile` wrote: loading another could
    end the process."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    digest = hashlib.sha256(content[:-_DIGEST_BYTES]).digest()
    return len(content) > _DIGEST_BYTES and content[-_DIGEST_BYTES:] == digest


def _run(command: Sequence[str], folder: str | None = None) -> str:
    """Run a compiler, its temporary files in `folder`, and return what it prints.

    Raises:
        UnavailableError: it fails.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    if folder is not None:
        environment["TMPDIR"] = folder
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        timeout=_COMPILER_LIMIT_S,
    )
    if done.returncode:
        raise UnavailableError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the features of this CPU by the names that Linux has for them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()
