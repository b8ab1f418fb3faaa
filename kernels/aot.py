"""Compile every kernel for a GPU on a machine that has none, and check the result.

    python -m bark_fast.kernels.aot --targets 80 90 100 --dtypes float16 bfloat16

The launches are recorded from the operations themselves, which run on tensors without memory at the
shapes of Bark's two sizes (`aot_cases`), so what is compiled is what would be launched. None may
spill or exceed the target's shared memory; those that read rows of weights, keys or values must
have 16-byte loads, and products in half precision must use tensor cores. The table and the checks
are printed; the exit status is 1 if one fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from bark_fast.kernels.aot_cases import SHAPES, ModelShape, cases

__all__ = ["SHAPES", "ModelShape", "Report", "cases", "compile_all", "main"]

# The shared memory that one program may use, in bytes (CUDA C++ Programming Guide, table of
# compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
HALF = ("float16", "bfloat16")
_PRODUCTS = ("linear_decode.decode_kernel", "linear_tile.tile_kernel", "attention.flash_kernel")
# These read rows of weights, keys or values; the others read logits, ids or single rows.
_WIDE = (*_PRODUCTS, "attention.decode_kernel")


@dataclass
class Launch:
    """A recorded launch: the kernel and everything that its code depends on."""

    kernel: JITFunction[Any]
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[int, ...]  # places of the arguments that are multiples of 16
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The file and function of the kernel."""
        return f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__}"

    @property
    def key(self) -> str:
        return repr((self.name, self.signature, self.constants, self.divisible, self.options))


@dataclass
class Report:
    """The properties of a launch that was compiled for a target."""

    launch: Launch
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
        if self.launch.name in _PRODUCTS and self.dtype in HALF and not self.tensor_core:
            self.faults.append("no tensor cores")
        if self.launch.name in _WIDE and not self.wide_loads:
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
        launches.append(_describe(self, args, kwargs))

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
            names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
            names |= {torch.int64: "i64", torch.int32: "i32"}
            signature[param.name] = "*" + names[value.dtype]
            divisible.append(i)
        elif isinstance(value, int):
            signature[param.name] = "i32"
            if special and value % 16 == 0:
                divisible.append(i)
        else:
            signature[param.name] = "fp32"
    return Launch(kernel, signature, constants, tuple(divisible), options)


def build(launch: Launch, target: int) -> CompiledKernel:
    """Compile a launch for sm_`target`."""
    source = ASTSource(
        launch.kernel,
        launch.signature,
        launch.constants,
        {(i,): [["tt.divisibility", 16]] for i in launch.divisible},
    )
    return triton.compile(source, GPUTarget("cuda", target, 32), launch.options)


def compile_launch(launch: Launch, case: str, target: int, dtype: str) -> Report:
    """Compile a launch for sm_`target` and read the result's properties."""
    compiled = build(launch, target)
    ptx = compiled.asm["ptx"]
    usage = resource_usage(compiled.asm["cubin"])
    report = Report(
        launch=launch,
        case=case,
        target=target,
        dtype=dtype,
        registers=usage["REG"],
        shared=compiled.metadata.shared,
        spilled=usage["STACK"] + usage["LOCAL"],
        instructions=len(re.findall(r"^\s+(?:@%?\w+ )?[a-z][\w.]*[ \t].*;", ptx, re.MULTILINE)),
        tensor_core=_tensor_core(ptx),
        wide_loads=bool(re.search(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\S*|v2\.b64", ptx)),
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


def compile_all(
    sizes: Iterable[str], dtypes: Iterable[str], targets: Iterable[int]
) -> Iterator[Report]:
    """Record and compile all launches, each distinct one once per target."""
    targets = list(targets)
    done: set[tuple[str, int]] = set()
    for size in sizes:
        for dtype in dtypes:
            for name, run in cases(SHAPES[size], DTYPES[dtype]):
                launches: list[Launch] = []
                with recording(launches):
                    run()
                for launch in launches:
                    for target in targets:
                        if launch.options.get("launch_pdl") and target < 90:
                            continue
                        if (launch.key, target) not in done:
                            done.add((launch.key, target))
                            yield compile_launch(launch, f"{size} {name}", target, dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a kernel has a fault, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=list(HALF), choices=list(DTYPES))
    parser.add_argument("--targets", nargs="+", type=int, default=list(SHARED_LIMIT))
    arguments = parser.parse_args(argv)
    print(HEADER)
    faults = count = 0
    for report in compile_all(arguments.sizes, arguments.dtypes, arguments.targets):
        print(report.row(), flush=True)
        count += 1
        faults += bool(report.faults)
    print(f"{count} compiled, {faults} with faults (triton {triton.__version__})")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
