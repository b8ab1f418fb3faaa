"""Compile every kernel for a GPU on a machine that has none, and check the result.

    python -m bark_fast.kernels.aot --targets 80 90 100 --dtypes float16 bfloat16 --jobs 2

The launches are recorded from the operations themselves, which run on tensors without memory at the
shapes of Bark's two sizes (`aot_cases`), so what is compiled is what would be launched. None may
spill or exceed the target's shared memory; those that read rows of weights, keys or values must
have 16-byte loads, and products in half precision must use tensor cores. The table and the checks
are printed; the exit status is 1 if one fails. What is compiled for a machine's own GPU stays in
Triton's cache, where the engine finds it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from bark_fast.kernels.aot_cases import SHAPES, ModelShape, cases
from bark_fast.kernels.triton.device import Device, assuming

__all__ = ["SHAPES", "ModelShape", "Report", "cases", "compile_all", "main"]

# The shared memory that one program may use, in bytes (CUDA C++ Programming Guide, table of
# compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
HALF = ("float16", "bfloat16")
_WIDE_LOADS = r"ld\.global\S*\.v4\.b32|cp\.async\.cg|cp\.async\.bulk\.tensor|v2\.b64"
_TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64",
    torch.int32: "i32",
}  # fmt: skip
PDL_TARGET = 90  # the first with programmatic dependent launch
# Of each target the data centre's chip.
DEVICES = {
    80: Device("NVIDIA A100", (8, 0), 108), 90: Device("NVIDIA H200", (9, 0), 132),
    100: Device("NVIDIA B200", (10, 0), 148),
}  # fmt: skip
_PRODUCTS = ("linear", "attention.flash")
# These read rows of weights, keys or values; the others read logits, ids or single rows.
_WIDE = ("linear", "attention")


@dataclass
class Launch:
    """A recorded launch: the kernel and everything that its code depends on."""

    kernel: JITFunction[Any]
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[int, ...]  # places of the arguments that are multiples of 16
    options: dict[str, Any]
    grid: tuple[int, ...] = ()  # the code does not depend on it

    @property
    def name(self) -> str:
        """The file and function of the kernel."""
        return f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__}"

    def specialization(self) -> list[tuple[str, Any]]:
        """Return each argument's type and what the code may rely on, as Triton's launcher does."""
        found: list[tuple[str, Any]] = []
        for i, (param, kind) in enumerate(
            zip(self.kernel.params, self.signature.values(), strict=True)
        ):
            if kind == "constexpr":
                found.append((kind, self.constants[param.name]))
            elif kind == "fp32" or param.do_not_specialize:
                found.append((kind, None))
            else:
                found.append((kind, "D" if i in self.divisible else ""))
        return found

    @property
    def key(self) -> str:
        return repr((self.name, self.signature, self.constants, self.divisible, self.options))


@dataclass
class Report:
    """The properties of a launch that was compiled for a target."""

    kernel: str
    case: str
    target: int
    dtype: str
    registers: int
    shared: int
    spilled: int  # bytes of stack and local memory
    instructions: int
    tensor_core: str
    wide_loads: bool
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Fill in `faults`."""
        if self.spilled:
            self.faults.append(f"spills {self.spilled} bytes")
        if self.shared > SHARED_LIMIT[self.target]:
            self.faults.append(f"{self.shared} bytes of shared memory")
        if self.kernel.startswith(_PRODUCTS) and self.dtype in HALF and not self.tensor_core:
            self.faults.append("no tensor cores")
        if self.kernel.startswith(_WIDE) and not self.wide_loads:
            self.faults.append("no 16-byte loads")

    def row(self) -> str:
        """Return one line of the table."""
        fault = "; ".join(self.faults)
        return (
            f"sm_{self.target:<4}{self.dtype:<9} {self.case:<34} {self.registers:>4} "
            f"{self.shared:>7} {self.spilled:>5} {self.instructions:>6}  {self.tensor_core:<22} "
            f"{'ok' if not fault else 'FAULT: ' + fault}"
        )


HEADER = (
    f"{'target':<7}{'dtype':<9} {'kernel':<34} {'regs':>4} {'shared':>7} {'spill':>5} "
    f"{'instr':>6}  {'tensor cores':<22}"
)


@contextmanager
def recording(launches: list[Launch]) -> Iterator[None]:
    """Record the launches inside the block instead of running them."""

    def record(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(replace(_describe(self, args, kwargs), grid=tuple(grid)))

    original = JITFunction.run
    JITFunction.run = record  # type: ignore[method-assign]
    try:
        yield
    finally:
        JITFunction.run = original  # type: ignore[method-assign]


def _describe(kernel: JITFunction[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False))
    values.update((k, v) for k, v in kwargs.items() if k in kernel.arg_names)
    options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = []
    for i, param in enumerate(kernel.params):
        value = values[param.name]
        # Like Triton's launcher: 1 is compiled in, and multiples of 16 are marked as such.
        special = isinstance(value, int) and not param.do_not_specialize
        if param.is_constexpr or (special and value == 1):
            signature[param.name] = "constexpr"
            constants[param.name] = value
        elif isinstance(value, Tensor):
            signature[param.name] = "*" + _TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:  # without memory it is 0
                divisible.append(i)
        elif isinstance(value, TensorDescriptor):
            block = list(value.block_shape)
            signature[param.name] = f"tensordesc<{_TYPES[value.base.dtype]}{block}>"
        elif isinstance(value, int):
            signature[param.name] = "i32"
            if special and value % 16 == 0:
                divisible.append(i)
        else:
            signature[param.name] = "fp32"
    return Launch(kernel, signature, constants, tuple(divisible), options)


def build(launch: Launch, target: int) -> CompiledKernel:
    """Compile a launch for sm_`target`."""
    gpu = GPUTarget("cuda", target, 32)
    # Triton's own launcher writes the attributes: its cache knows a kernel by their very text.
    values = {name: launch.constants.get(name) for name in launch.signature}
    _, _, _, attributes = launch.kernel._pack_args(
        make_backend(gpu), {}, values, launch.specialization(), None
    )
    source = ASTSource(launch.kernel, launch.signature, launch.constants, attributes)
    return triton.compile(source, gpu, launch.options)


def compile_launch(launch: Launch, case: str, target: int, dtype: str) -> Report:
    """Compile a launch for sm_`target` and read the result's properties."""
    compiled = build(launch, target)
    ptx = compiled.asm["ptx"]
    usage = resource_usage(compiled.asm["cubin"])
    report = Report(
        kernel=launch.name,
        case=case,
        target=target,
        dtype=dtype,
        registers=usage["REG"],
        shared=compiled.metadata.shared,
        spilled=usage["STACK"] + usage["LOCAL"],
        instructions=len(re.findall(r"^\s+(?:@%?\w+ )?[a-z][\w.]*[ \t].*;", ptx, re.MULTILINE)),
        tensor_core=_tensor_core(ptx),
        wide_loads=bool(re.search(_WIDE_LOADS, ptx)),
    )
    report.check()
    return report


def _tensor_core(ptx: str) -> str:
    for pattern in (
        r"tcgen05\.mma",
        r"wgmma\.mma_async\.\S*?(m\d+n\d+k\d+)",
        r"mma\.sync\.\S*?(m\d+n\d+k\d+)",
    ):
        found = re.search(pattern, ptx)
        if found:
            return " ".join([pattern.split("\\.")[0], *found.groups()])
    return ""


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Return REG, STACK and LOCAL of the one function in `cubin`, read by Triton's cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump said: {text}")
    return dict(zip(("REG", "STACK", "LOCAL"), map(int, found.groups()), strict=True))


def record(run: Callable[[], object], target: int = 90) -> list[Launch]:
    """Return the launches that `run` makes on a GPU of this target; nothing is launched."""
    launches: list[Launch] = []
    with recording(launches), assuming(DEVICES[target]):
        run()
    return launches


def all_launches(
    sizes: Iterable[str], dtypes: Iterable[str], targets: Iterable[int]
) -> Iterator[tuple[Launch, str, int, str]]:
    """Yield (launch, case, target, dtype) of all launches, each distinct one once per target."""
    done: set[tuple[str, int]] = set()
    for size, dtype, target in itertools.product(sizes, dtypes, targets):
        for pdl in (False, True) if target >= PDL_TARGET else (False,):
            for name, run in cases(SHAPES[size], DTYPES[dtype], pdl=pdl):
                for launch in record(run, target):
                    if (launch.key, target) not in done:
                        done.add((launch.key, target))
                        yield launch, f"{size} {name}", target, dtype


def compile_all(
    sizes: Sequence[str], dtypes: Sequence[str], targets: Sequence[int], *, jobs: int = 1
) -> Iterator[Report]:
    """Compile all launches, in so many processes, and yield what came of each."""
    if jobs == 1:
        for launch in all_launches(sizes, dtypes, targets):
            yield compile_launch(*launch)
        return
    # Fresh interpreters: the fork of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        shares = [pool.submit(compile_share, sizes, dtypes, targets, i, jobs) for i in range(jobs)]
        for share in as_completed(shares):
            yield from share.result()


def compile_share(
    sizes: Sequence[str],
    dtypes: Sequence[str],
    targets: Sequence[int],
    first: int,
    every: int,
) -> list[Report]:
    """Compile each `every`-th of all launches, from number `first` on."""
    mine = itertools.islice(all_launches(sizes, dtypes, targets), first, None, every)
    return [compile_launch(*launch) for launch in mine]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a kernel has a fault, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=list(HALF), choices=list(DTYPES))
    parser.add_argument("--targets", nargs="+", type=int, default=list(SHARED_LIMIT))
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile (default: 1)")
    arguments = parser.parse_args(argv)
    print(HEADER)
    faults = count = 0
    for report in compile_all(
        arguments.sizes, arguments.dtypes, arguments.targets, jobs=arguments.jobs
    ):
        print(report.row(), flush=True)
        count += 1
        faults += bool(report.faults)
    print(f"{count} compiled, {faults} with faults (triton {triton.__version__})")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
