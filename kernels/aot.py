"""Compile every kernel for a GPU on a machine that has none, and look at what came out.

    python -m bark_fast.kernels.aot --targets 80 90 100 --dtypes float16 bfloat16

The launches are recorded from the operations themselves, run on tensors without memory at the
shapes of Bark's two sizes, so what is compiled is what would be launched. Each must not spill and
must fit the target's shared memory; those that read rows of weights, keys or values must have
16-byte loads, and products in half precision must use tensor cores. The table and the checks are
printed; the exit status is 1 if one fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bark_fast import kernels

# Shared memory that one program may have, in bytes (CUDA C++ Programming Guide, table of compute
# capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class ModelShape:
    """What the kernels see of a model size."""

    width: int
    heads: int
    text_ids: int = 129_600
    semantic_ids: int = 10_001  # columns of the semantic head
    coarse_ids: int = 2_096
    codebook_size: int = 1_024
    codebooks: int = 8
    codec_channels: int = 128


SHAPES = {"small": ModelShape(768, 12), "large": ModelShape(1024, 16)}
_PRODUCTS = ("linear.decode_kernel", "linear.tile_kernel", "attention.flash_kernel")
# What reads rows of weights, keys or values; the others read logits, ids or single rows.
_WIDE = (*_PRODUCTS, "attention.decode_kernel")


@dataclass
class Launch:
    """One recorded launch: the kernel and everything that its code depends on."""

    kernel: JITFunction[Any]
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[int, ...]  # places of the arguments that are multiples of 16
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """File and function."""
        return f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__}"

    @property
    def key(self) -> str:
        return repr((self.name, self.signature, self.constants, self.divisible, self.options))


@dataclass
class Report:
    """What a launch became on a target."""

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
        """One line of the table."""
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
    """Launches inside the block are recorded instead of run."""

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
        # As triton's own launcher does: 1 is compiled in, multiples of 16 are known to be.
        if param.is_constexpr or (isinstance(value, int) and value == 1):
            signature[param.name] = "constexpr"
            constants[param.name] = value
        elif isinstance(value, Tensor):
            names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
            names |= {torch.int64: "i64", torch.int32: "i32"}
            signature[param.name] = "*" + names[value.dtype]
            divisible.append(i)
        elif isinstance(value, int):
            signature[param.name] = "i32"
            if value % 16 == 0:
                divisible.append(i)
        else:
            signature[param.name] = "fp32"
    return Launch(kernel, signature, constants, tuple(divisible), options)


def cases(shape: ModelShape, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every operation as the models call it, decode at 1 and at 17 rows, by name."""

    def new(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    c, h = shape.width, shape.heads
    d = c // h
    i64 = torch.int64
    # Small pages for many sequences, and one page a sequence.
    page_sizes = (16, 1024)
    norm, norm_bias = (new(c), None), (new(c), new(c))
    backend, dependent = kernels.backend("triton"), kernels.backend("triton", pdl=True)

    def attend(
        rows: int, page_size: int, *, decode: bool, by: kernels.Backend = backend
    ) -> Callable[[], object]:
        pages, table = new(64, h, page_size, d), new(4, 1024 // page_size, of=i64)
        return lambda: by.paged_attention(
            new(rows, h, d), pages, pages,
            block_tables=table, cu_seqlens_q=new(5, of=i64),
            seq_lens=new(4, of=i64), max_queries=1 if decode else 300, max_length=1024,
            decode=decode,
        )  # fmt: skip

    def embed(streams: int, table: Tensor, tokens: int = 300) -> Callable[[], object]:
        return lambda: backend.embedding_sum(
            new(streams, tokens, of=i64), table, positions=new(tokens, of=i64),
            position_table=new(1024, c),
        )  # fmt: skip

    yield "embedding (prompt)", embed(2, new(1, shape.text_ids, c).expand(2, -1, -1))
    yield "embedding (decode)", embed(1, new(1, shape.text_ids, c), tokens=4)
    yield "embedding (one token)", embed(1, new(1, shape.text_ids, c), tokens=1)
    yield "embedding (fine)", embed(7, new(shape.codebooks, 1056, c))
    yield "layer norm", lambda: backend.layer_norm(new(300, c), new(c), None)
    for rows in (1, 16, 17, 300):
        decode = rows < 300
        tail = f" M={rows}" if decode else " prefill"
        options: dict[str, Any] = {"decode": decode}
        x = new(rows, c)

        def qkv(
            page_size: int, x: Tensor = x, rows: int = rows, options: dict[str, Any] = options
        ) -> object:
            pages = new(64, h, page_size, d)
            return backend.qkv_to_pages(
                x, new(3 * c, c), None, norm=norm, k_pages=pages, v_pages=pages,
                slot_mapping=new(rows, of=i64), **options,
            )  # fmt: skip

        def out(x: Tensor = x, options: dict[str, Any] = options) -> object:
            return backend.fused_linear(x, new(c, c), residual=x, **options)

        def fc_1(x: Tensor = x, options: dict[str, Any] = options) -> object:
            return backend.fused_linear(x, new(4 * c, c), norm=norm, gelu=True, **options)

        def fc_2(x: Tensor = x, options: dict[str, Any] = options) -> object:
            return backend.fused_linear(new(len(x), 4 * c), new(c, 4 * c), residual=x, **options)

        for page_size in page_sizes:
            yield f"qkv to pages of {page_size}{tail}", partial(qkv, page_size)
        yield "out + residual" + tail, out
        yield "fc1 + gelu" + tail, fc_1
        yield "fc2 + residual" + tail, fc_2
        if decode:
            for head, ids in (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids)):
                yield (
                    f"{head} head{tail}",
                    lambda x=x, ids=ids, options=options: backend.fused_linear(  # type: ignore[misc]
                        x, new(ids, c), norm=norm, **options
                    ),
                )
    yield (
        "fc1 + gelu M=1 pdl",
        lambda: dependent.fused_linear(new(1, c), new(4 * c, c), norm=norm, gelu=True, decode=True),
    )
    yield (
        "fc2 + residual M=1 pdl",
        lambda: dependent.fused_linear(
            new(1, 4 * c), new(c, 4 * c), residual=new(1, c), decode=True
        ),
    )
    fine = new(2 * 1024, c)
    yield "fine qkv", lambda: backend.fused_linear(fine, new(3 * c, c), norm=norm_bias)
    yield (
        "fine fc1 + gelu",
        lambda: backend.fused_linear(fine, new(4 * c, c), norm=norm_bias, gelu=True),
    )
    yield (
        "fine head",
        lambda: backend.fused_linear(fine, new(shape.codebook_size, c), norm=norm_bias),
    )
    for page_size in page_sizes:
        tail = f", pages of {page_size}"
        yield f"attention (decode{tail})", attend(4, page_size, decode=True)
        yield f"attention (prefill{tail})", attend(1200, page_size, decode=False)
    yield "attention (decode) pdl", attend(4, 16, decode=True, by=dependent)
    window = new(2, 1024, 3, h, d)
    yield (
        "attention (fine)",
        lambda: backend.bidirectional_attention(*window.unbind(2)),
    )
    for stage, ids in (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids)):
        yield f"sample ({stage})", _sample(new, ids, dtype, eos=stage == "semantic")
    yield "sample (fine)", _sample(new, shape.codebook_size, dtype, eos=False, state=False)
    yield (
        "codebook sum",
        lambda: backend.codebook_sum(
            new(1, shape.codebooks, 700, of=i64),
            new(shape.codebooks, shape.codebook_size, shape.codec_channels, of=torch.float32),
        ),
    )


def _sample(
    new: Callable[..., Tensor], ids: int, dtype: torch.dtype, *, eos: bool, state: bool = True
) -> Callable[[], object]:
    rows, i64, f32 = 4, torch.int64, torch.float32

    def vector(of: torch.dtype = i64) -> Tensor:
        return new(rows, of=of)

    loop = kernels.DecodeState(
        token_ids=vector(), positions=vector(), seq_lens=vector(), slot_mapping=vector(),
        block_tables=new(rows, 64, of=i64), num_generated=vector(), limits=vector(),
        finished=vector(torch.int32), history=new(rows, 768, of=i64), page_size=16,
    )  # fmt: skip
    metadata = kernels.SamplingMetadata(
        temperature=vector(f32), top_k=vector(), top_p=vector(f32), seeds=vector(),
        min_eos_p=vector(f32), min_new_tokens=vector(),
    )  # fmt: skip
    space = kernels.TokenSpace(
        stage=0 if eos else 1, first_id=10_000, has_end=eos, n_ranges=1 if eos else 2,
        range_size=1024,
    )  # fmt: skip
    return lambda: kernels.backend("triton").sample(
        new(rows, ids, of=dtype), metadata, space, positions=vector(),
        state=loop if state else None,
    )  # fmt: skip


def compile_launch(launch: Launch, case: str, target: int, dtype: str) -> Report:
    """Compile for sm_`target` and read the result."""
    source = ASTSource(
        launch.kernel,
        launch.signature,
        launch.constants,
        {(i,): [["tt.divisibility", 16]] for i in launch.divisible},
    )
    compiled = triton.compile(source, GPUTarget("cuda", target, 32), launch.options)
    ptx = compiled.asm["ptx"]
    usage = _resource_usage(compiled.asm["cubin"])
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


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK and LOCAL of the one function in `cubin`, by the cuobjdump inside triton."""
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
    """Record and compile; the same code is compiled once."""
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
    """Print the table; 1 if something is wrong with a kernel."""
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
