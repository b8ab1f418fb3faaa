"""One case an operation: time, bytes and FLOPs by formula, and the same in torch side by side.

    python -m bench.kernels --size large --dtype bfloat16 --json bench/results/DEVICE-kernels.json

On a GPU the Triton kernel is timed with triton's do_bench_cudagraph, against torch's own way
(cuBLAS, scaled_dot_product_attention, F.layer_norm; for what torch has no call for, the plain
reference; with --compile also what torch.compile makes of it, and the better one counts). On a CPU
it is the CPU's path that is timed. The floor of a case is the larger of its bytes over the measured
copy bandwidth and its FLOPs over the measured matrix rate; both are measured at the start and
printed before any timing. A weight that fits the cache can beat the floor: repeated calls find it
there.

`pytest bench/test_kernels.py` runs the same cases under pytest-benchmark.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from bark_fast import kernels
from bark_fast.kernels.aot import SHAPES, ModelShape
from bench.machine import device_name

PAGE_SIZE = 16
DECODE_ROWS = (1, 8, 32, 128)


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        ours: runs it with the given implementation. torch_way: as a torch user would, or None
            where that is the reference itself.
        n_bytes: what must be read and written once. flops: multiplications and additions.
    """

    name: str
    ours: Callable[[kernels.Impl], object]
    torch_way: Callable[[], object] | None
    n_bytes: int
    flops: int = 0


def linear_cost(m: int, n: int, k: int, size: int, *, residual: bool = False) -> tuple[int, int]:
    """(bytes, FLOPs) of an [m, k] x [k, n] product, with the reading of a residual if asked."""
    return (n * k + m * k + m * n * (1 + residual)) * size, 2 * m * n * k


def attention_cost(
    queries: int, keys: int, width: int, size: int, *, seen: float | None = None
) -> tuple[int, int]:
    """(bytes, FLOPs) of `queries` queries of which each sees `seen` keys on average (None: all);
    every key and value is read once."""
    seen = keys if seen is None else seen
    return (2 * queries + 2 * keys) * width * size, int(4 * queries * seen * width)


def cases(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Decode at several batch sizes, prefill, and the fine model's windows."""
    generator = torch.Generator().manual_seed(0)
    c, h = shape.width, shape.heads
    d = c // h
    size = torch.tensor([], dtype=dtype).element_size()

    def randn(*of: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(of, generator=generator) * scale).to(device, dtype)

    def integers(high: int, *of: int) -> torch.Tensor:
        return torch.randint(high, of, generator=generator).to(device)

    norm = (randn(c), None)
    weights = {
        "qkv": randn(3 * c, c, scale=c**-0.5),
        "out": randn(c, c, scale=c**-0.5),
        "fc1": randn(4 * c, c, scale=c**-0.5),
        "fc2": randn(c, 4 * c, scale=c**-0.5),
    }

    def products(rows: int, *, decode: bool, tail: str) -> Iterator[Case]:
        x, wide = randn(rows, c), randn(rows, 4 * c)
        n_pages = -(-rows // PAGE_SIZE) + 1
        pages = randn(2, n_pages, h, PAGE_SIZE, d)
        slots = torch.arange(rows, device=device)
        w = weights

        def qkv_torch() -> object:
            qkv = F.linear(F.layer_norm(x, (c,), norm[0]), w["qkv"])
            q, k, v = qkv.view(rows, 3, h, d).unbind(1)
            pages[0, slots // PAGE_SIZE, :, slots % PAGE_SIZE] = k
            pages[1, slots // PAGE_SIZE, :, slots % PAGE_SIZE] = v
            return q

        yield Case(
            f"qkv to pages {tail}",
            lambda impl: kernels.qkv_to_pages(
                x, w["qkv"], None, norm=norm, k_pages=pages[0], v_pages=pages[1], slots=slots,
                decode=decode, impl=impl,
            ),
            qkv_torch,
            *linear_cost(rows, 3 * c, c, size),
        )  # fmt: skip
        yield Case(
            f"out + residual {tail}",
            lambda impl: kernels.fused_linear(x, w["out"], residual=x, decode=decode, impl=impl),
            lambda: F.linear(x, w["out"]) + x,
            *linear_cost(rows, c, c, size, residual=True),
        )
        yield Case(
            f"norm + fc1 + gelu {tail}",
            lambda impl: kernels.fused_linear(
                x, w["fc1"], norm=norm, gelu=True, decode=decode, impl=impl
            ),
            lambda: F.gelu(F.linear(F.layer_norm(x, (c,), norm[0]), w["fc1"])),
            *linear_cost(rows, 4 * c, c, size),
        )
        yield Case(
            f"fc2 + residual {tail}",
            lambda impl: kernels.fused_linear(wide, w["fc2"], residual=x, decode=decode, impl=impl),
            lambda: F.linear(wide, w["fc2"]) + x,
            *linear_cost(rows, c, 4 * c, size, residual=True),
        )

    def paged(batch: int, queries: int, length: int, *, decode: bool, tail: str) -> Case:
        per_sequence = -(-length // PAGE_SIZE)
        pages = randn(2, batch * per_sequence, h, PAGE_SIZE, d)
        tables = torch.randperm(batch * per_sequence, generator=generator)
        tables = tables.view(batch, per_sequence).to(device)
        q = randn(batch * queries, h, d)
        starts = torch.arange(batch + 1, device=device) * queries
        lengths = torch.full((batch,), length, device=device)
        dense = randn(3, batch, h, length, d)
        seen = length if decode else (length + 1) / 2
        n_bytes, flops = attention_cost(queries, length, c, size, seen=seen)
        workspace = torch.zeros(batch * h, dtype=torch.int32, device=device)
        return Case(
            f"attention {tail}",
            lambda impl: kernels.paged_attention(
                q, pages[0], pages[1], block_tables=tables, query_starts=starts,
                kv_lengths=lengths, max_queries=queries, max_length=length, decode=decode,
                workspace=workspace, impl=impl,
            ),
            # torch has no pages: it is given the same keys and values side by side.
            lambda: F.scaled_dot_product_attention(
                dense[0, :, :, :queries], dense[1], dense[2], is_causal=not decode
            ),
            batch * n_bytes,
            batch * flops,
        )  # fmt: skip

    for rows in DECODE_ROWS:
        yield from products(rows, decode=True, tail=f"M={rows}")
        yield paged(rows, 1, 700, decode=True, tail=f"decode B={rows} T=700")
    prompt = 8 * 257
    yield from products(prompt, decode=False, tail=f"M={prompt}")
    yield paged(8, 257, 257, decode=False, tail="prefill B=8 T=257")
    yield from products(8 * 1024, decode=False, tail="fine M=8192")
    q, k, v = randn(8, 1024, 3, h, d).unbind(2)
    n_bytes, flops = attention_cost(1024, 1024, c, size)
    yield Case(
        "attention fine B=8 T=1024",
        lambda impl: kernels.bidirectional_attention(q, k, v, impl=impl),
        lambda: F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))),
        8 * n_bytes,
        8 * flops,
    )
    rows = 8192
    x = randn(rows, c)
    yield Case(
        f"layer norm M={rows}",
        lambda impl: kernels.layer_norm(x, norm[0], None, impl=impl),
        lambda: F.layer_norm(x, (c,), norm[0]),
        2 * rows * c * size,
    )
    tables, positions = randn(8, 1056, c), torch.arange(1024, device=device).repeat(8)
    ids, position_table = integers(1056, 8, rows), randn(1024, c)
    yield Case(
        "embedding sum K=8 M=8192",
        lambda impl: kernels.embedding_sum(
            ids, tables, positions=positions, position_table=position_table, impl=impl
        ),
        None,
        # Tables stay in cache: their rows are read once, the ids and the sum pass through.
        (tables.numel() + position_table.numel() + rows * c) * size + ids.numel() * 8,
    )
    codes, books = integers(1024, 8, 8, 1024), torch.randn(8, 1024, 128).to(device)
    yield Case(
        "codebook sum B=8 F=1024",
        lambda impl: kernels.codebook_sum(codes, books, impl=impl),
        None,
        books.numel() * 4 + codes.numel() * 8 + 8 * 128 * 1024 * 4,
    )
    for batch, ids_, what in (
        (64, shape.semantic_ids, "semantic"),
        (64, shape.coarse_ids, "coarse"),
    ):
        yield _sampling_case(batch, ids_, what, dtype, device)


def _sampling_case(
    batch: int, columns: int, what: str, dtype: torch.dtype, device: torch.device
) -> Case:
    logits = torch.randn(batch, columns).to(device, dtype)
    options = {
        "temperature": torch.full((batch,), 0.7, device=device),
        "top_k": torch.zeros(batch, dtype=torch.int64, device=device),
        "top_p": torch.ones(batch, device=device),
        "seeds": torch.arange(batch, device=device),
        "positions": torch.arange(batch, device=device),
    }
    return Case(
        f"sample {what} B={batch}",
        lambda impl: kernels.sample(logits, stage=0, impl=impl, **options),
        lambda: torch.multinomial((logits.float() / 0.7).softmax(-1), 1),
        logits.numel() * logits.element_size(),
    )


@dataclass(frozen=True)
class Limits:
    """What this machine was measured to do."""

    bytes_per_s: float
    flops_per_s: float

    def floor_s(self, case: Case) -> float:
        """The least time that the case can take."""
        return max(case.n_bytes / self.bytes_per_s, case.flops / self.flops_per_s)


def median_s(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of one call."""
    if device.type == "cuda":
        from triton.testing import do_bench_cudagraph

        # In a graph, as an engine runs them: else the launches of a few us are what is timed.
        with torch.cuda.stream(torch.cuda.Stream()):
            return float(do_bench_cudagraph(run, rep=50, return_mode="median")) * 1e-3
    run()
    times = []
    deadline = time.perf_counter() + 0.3
    while len(times) < 3 or (time.perf_counter() < deadline and len(times) < 100):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_limits(dtype: torch.dtype, device: torch.device) -> Limits:
    """Copy bandwidth (read and written bytes) and matrix rate of this machine, now."""
    n = 2**28 if device.type == "cuda" else 2**26
    source = torch.zeros(n, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    return Limits(
        2 * n / median_s(lambda: target.copy_(source), device),
        2 * side**3 / median_s(lambda: a @ b, device),
    )


def main() -> None:
    """Measure, print, and with --json also write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="large", choices=list(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="time torch.compile's version too")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    impl = kernels.choose_impl(device)
    limits = measure_limits(dtype, device)
    name = device_name(arguments.device)
    print(f"{name}, torch {torch.__version__}, {arguments.size} {arguments.dtype}, {impl}")
    print(
        f"copy {limits.bytes_per_s / 1e9:.0f} GB/s, product {limits.flops_per_s / 1e12:.2f} TFLOP/s"
    )
    print(
        f"{'case':<32} {'floor us':>9} {'ours us':>9} {'of floor':>8} {'torch us':>9} {'ratio':>6}"
    )
    rows = []
    for case in cases(SHAPES[arguments.size], dtype, device):
        if arguments.only not in case.name:
            continue
        floor = limits.floor_s(case)
        ours = median_s(lambda case=case: case.ours(impl), device)
        plain = case.torch_way or (lambda case=case: case.ours("torch"))
        theirs = {"torch_s": median_s(plain, device)}
        if arguments.compile:
            theirs["torch_compile_s"] = median_s(torch.compile(plain, dynamic=False), device)
        best = min(theirs.values())
        print(
            f"{case.name:<32} {floor * 1e6:9.1f} {ours * 1e6:9.1f} {floor / ours:8.0%} "
            f"{best * 1e6:9.1f} {best / ours:6.2f}",
            flush=True,
        )
        rows.append(
            {"case": case.name, "bytes": case.n_bytes, "flops": case.flops, "floor_s": floor,
             "ours_s": ours, **theirs}
        )  # fmt: skip
    if arguments.json is not None:
        report = {
            "device": name, "torch": torch.__version__, "size": arguments.size,
            "dtype": arguments.dtype, "impl": impl, "limits": asdict(limits), "cases": rows,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
