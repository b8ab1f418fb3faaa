"""The compiled code of decode kernels, executed: what sm_90 would run, without a GPU.

The kernels' own Python side launches them, and `helpers.ptx` runs the PTX that Triton makes of the
launch. Some programs of each grid run, in random order. Every access is checked: inputs end where
their rows do, what no kernel wrote is NaN and must not be read, outputs begin as NaN, and shared
memory and the programs' meeting point must be free of races. `test_executed_stages.py` has the
other kernels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.kernels.aot_cases import SHAPES
from bark_fast.kernels.triton import linear, schedules
from helpers.kernel_cases import Sequences, exact_linear
from helpers.kernels import assert_accurate, randn
from helpers.ptx import Code, Compiler, Device, PtxError
from helpers.ptx.dependents import assert_starts_the_next_and_waits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cpu_tensors")]

HALF = [torch.bfloat16, torch.float16]
ROWS = (64, 17, 16, 1)
PAGE_SIZE = 64
BARK = SHAPES["large"]
BLOCK = 32  # rows of W in the widest program, and a multiple of those of all
WIDTH, HEADS, HEAD_SIZE = BARK.width, BARK.heads, BARK.width // BARK.heads


@dataclass(frozen=True)
class Product:
    """A product of a decode step: x [M, k] @ weight [n, k].T."""

    k: int
    n: int
    norm: bool = False
    gelu: bool = False
    residual: bool = False

    def options(self, rows: int, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "norm": (1 + randn(self.k, seed=2, dtype=dtype) / 10, None) if self.norm else None,
            "gelu": self.gelu,
            "residual": randn(rows, self.n, seed=3, dtype=dtype) if self.residual else None,
        }

    def blocks(self) -> list[int]:
        """Return the first block of columns, one in the middle, and the last."""
        last = -(-self.n // BLOCK) - 1
        return [0, last // 3, last]

    def columns(self) -> Tensor:
        n = BLOCK
        found = [torch.arange(b * n, min((b + 1) * n, self.n)) for b in self.blocks()]
        return torch.cat(found)

    def on_device(self, compiler: Compiler, rows: int, **options: Any) -> Device:
        return on_device(compiler, rows, self.blocks(), **options)


def on_device(compiler: Compiler, rows: int, blocks: list[int], **options: Any) -> Device:
    """Return a device on which the programs of these blocks of columns run."""
    block_n = schedules.default(schedules.DecodeLaunch, HALF[0], rows=rows).block_n
    return Device(compiler, programs=lambda p: p[0] * block_n // BLOCK in blocks, **options)


PRODUCTS = {
    "out": Product(WIDTH, WIDTH, residual=True),
    "fc1": Product(WIDTH, 4 * WIDTH, norm=True, gelu=True),
    "fc2": Product(4 * WIDTH, WIDTH, residual=True),
    "semantic head": Product(WIDTH, BARK.semantic_ids, norm=True),
    "coarse head": Product(WIDTH, BARK.coarse_ids, norm=True),
}


def head_of(options: dict[str, Any], rows: int) -> dict[str, Any]:
    residual = options["residual"]
    return options | {"residual": None if residual is None else residual[:rows].clone()}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", PRODUCTS)
def test_decode_products(name: str, dtype: torch.dtype, ptx_compiler: Compiler) -> None:
    """Accurate, and row i has the same bits in every batch."""
    case = PRODUCTS[name]
    x = randn(max(ROWS), case.k, dtype=dtype)
    weight = randn(case.n, case.k, seed=1, dtype=dtype) / case.k**0.5
    options = case.options(max(ROWS), dtype)
    columns = case.columns()
    plain = kernels.fused_linear(x, weight, **options)[:, columns]
    extras = {k: v for k, v in options.items() if k != "residual"}
    residual = None if options["residual"] is None else options["residual"][:, columns]
    exact = exact_linear(x, weight[columns], residual=residual, **extras)
    alike: Tensor | None = None
    for rows in ROWS:
        workspace = torch.zeros(64, dtype=torch.int32)
        with case.on_device(ptx_compiler, rows, writable=[workspace], seed=rows):
            got = kernels.fused_linear(
                x[:rows].clone(), weight, **head_of(options, rows), decode=True,
                workspace=workspace, impl="triton",
            )  # fmt: skip
        assert not workspace.any(), "the counters are ready for the next launch"
        others = torch.ones(case.n, dtype=torch.bool)
        others[columns] = False
        assert got[:, others].isnan().all(), "a program writes its own columns only"
        got = got[:, columns]
        if alike is None:
            alike = got
            assert_accurate(got, plain, exact)
        assert torch.equal(got, alike[:rows]), f"a row's bits depend on the batch: {rows} rows"


@pytest.mark.parametrize("dtype", HALF)
def test_decode_keys_and_values_go_to_their_pages(
    dtype: torch.dtype, ptx_compiler: Compiler
) -> None:
    case = Product(WIDTH, 3 * WIDTH, norm=True)
    x = randn(max(ROWS), WIDTH, dtype=dtype)
    weight = randn(3 * WIDTH, WIDTH, seed=1, dtype=dtype) / WIDTH**0.5
    norm = case.options(1, dtype)["norm"]
    # A program each of queries, keys and values; the last of values.
    blocks = [5, WIDTH // BLOCK + 9, 2 * WIDTH // BLOCK, 3 * WIDTH // BLOCK - 1]
    columns = torch.cat([torch.arange(BLOCK * b, BLOCK * (b + 1)) for b in blocks])
    plain = kernels.fused_linear(x, weight, norm=norm)[:, columns]
    exact = exact_linear(x, weight[columns], norm=norm)
    slots = torch.randperm(2 * PAGE_SIZE, generator=torch.Generator().manual_seed(5))[: max(ROWS)]
    slots[3] = -1  # an empty row of the batch
    alike: Tensor | None = None
    for rows in ROWS:
        pages = torch.full((2, 2, HEADS, PAGE_SIZE, HEAD_SIZE), torch.nan, dtype=dtype)
        k_pages, v_pages = pages[0].clone(), pages[1].clone()
        with on_device(ptx_compiler, rows, blocks, writable=[k_pages, v_pages], seed=rows):
            q = kernels.qkv_to_pages(
                x[:rows].clone(), weight, None, norm=norm, k_pages=k_pages, v_pages=v_pages,
                slot_mapping=slots[:rows].clone(), decode=True, impl="triton",
            )  # fmt: skip
        at, offset = slots[:rows] // PAGE_SIZE, slots[:rows] % PAGE_SIZE
        stored = [p[at, :, offset].flatten(1) for p in (k_pages, v_pages)]
        got = torch.cat([q.flatten(1), *stored], dim=1)[:, columns]
        written = slots[:rows] >= 0
        expected = BLOCK * (len(blocks) - 1) * int(written.sum())
        found = int((~k_pages.isnan()).sum() + (~v_pages.isnan()).sum())
        assert found == expected, "a slot for each row that has one, and nothing else"
        assert not q[:, :, :].flatten(1)[:, columns[:BLOCK]].isnan().any(), "queries need no slot"
        if alike is None:
            alike = got
            assert_accurate(got[written], plain[written], exact[written])
        assert torch.equal(got[written], alike[:rows][written]), f"{rows} rows"


@pytest.mark.parametrize(
    ("rows", "name"), [(1, "fc1"), (17, "fc2"), (1, "out"), (17, "coarse head")]
)
def test_decode_products_of_bark_small(rows: int, name: str, ptx_compiler: Compiler) -> None:
    """768 and 3072 columns are no multiple of a block: what is behind them is masked."""
    shape, dtype = SHAPES["small"], torch.bfloat16
    large = PRODUCTS[name]
    n = {WIDTH: shape.width, 4 * WIDTH: 4 * shape.width}.get(large.n, large.n)
    case = replace(large, k=large.k // WIDTH * shape.width, n=n)
    x = randn(rows, case.k, dtype=dtype)
    weight = randn(case.n, case.k, seed=1, dtype=dtype) / case.k**0.5
    options = case.options(rows, dtype)
    workspace = torch.zeros(64, dtype=torch.int32)
    with case.on_device(ptx_compiler, rows, writable=[workspace]):
        got = kernels.fused_linear(
            x, weight, **options, decode=True, workspace=workspace, impl="triton"
        )
    columns = case.columns()
    plain, exact = kernels.fused_linear(x, weight, **options), exact_linear(x, weight, **options)
    assert_accurate(got[:, columns], plain[:, columns], exact[:, columns])


@pytest.mark.parametrize(
    ("name", "rows"), [("out", 1), ("fc1", 17), ("fc2", 1), ("coarse head", 1)]
)
def test_dependent_products(
    name: str, rows: int, ptx_compiler: Compiler, dependent: kernels.Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The weights alone are read before the kernel before has ended; the result is the same."""
    case, dtype = PRODUCTS[name], torch.bfloat16
    x = randn(rows, case.k, dtype=dtype)
    weight = randn(case.n, case.k, seed=1, dtype=dtype) / case.k**0.5
    options = case.options(rows, dtype)
    norm = [] if options["norm"] is None else [options["norm"][0]]
    workspace = torch.zeros(64, dtype=torch.int32)
    options |= {"decode": True, "workspace": workspace}
    device = case.on_device(ptx_compiler, rows, weights=[weight, *norm], writable=[workspace])
    with device:
        got = dependent.fused_linear(x, weight, **options)
        monkeypatch.setattr(linear, "can_launch_dependent", lambda x: False)
        want = dependent.fused_linear(x, weight, **options)
    waits = ["griddepcontrol.wait" in code.ptx for code, _ in device.ran]
    assert waits == [True, False]
    assert_starts_the_next_and_waits(device.ran[0][0], weights=True)
    columns = case.columns()
    assert torch.equal(got[:, columns], want[:, columns])


def test_a_dependent_product_reads_nothing_but_weights_early(
    ptx_compiler: Compiler, dependent: kernels.Backend
) -> None:
    """A weight that is not said to be one could be the result of the kernel before."""
    case, dtype = PRODUCTS["out"], torch.bfloat16
    x, weight = randn(1, case.k, dtype=dtype), randn(case.n, case.k, seed=1, dtype=dtype)
    with (
        Device(ptx_compiler, programs=lambda p: p[0] == 0),
        pytest.raises(PtxError, match=r"access to weight_ptr before griddepcontrol\.wait"),
    ):
        dependent.fused_linear(x, weight, **case.options(1, dtype), decode=True)


# Attention ----------------------------------------------------------------------------------------

LENGTHS = [700, 257, 0, 1, 64]
SOME_HEADS = (0, 7)


def attend(
    compiler: Compiler, sequences: Sequences, q: Tensor, chosen: list[int], *, seed: int = 0,
    backend: kernels.Backend | None = None, edit: Callable[[Code], Code] = lambda code: code,
) -> Tensor:  # fmt: skip
    """Decode some of the sequences, for `SOME_HEADS`; the meeting points must be zero again."""
    workspace = torch.zeros(len(chosen) * HEADS, dtype=torch.int32)
    with Device(
        compiler, programs=lambda p: p[1] in SOME_HEADS, writable=[workspace], seed=seed, edit=edit
    ):
        out = (backend or kernels.backend("triton")).paged_attention(
            q[chosen].clone(), sequences.k_pages, sequences.v_pages,
            block_tables=sequences.tables[chosen].clone(),
            seq_lens=torch.tensor(sequences.lengths)[chosen], max_queries=1, max_length=1024,
            decode=True, workspace=workspace,
        )  # fmt: skip
    assert not workspace.any()
    return out[:, list(SOME_HEADS)]


@pytest.mark.parametrize("dtype", HALF)
def test_decode_attention(dtype: torch.dtype, ptx_compiler: Compiler) -> None:
    """Unwritten pages are not read; neither the programs' order nor the batch changes a bit."""
    sequences = Sequences(LENGTHS, PAGE_SIZE, heads=HEADS, size=HEAD_SIZE, dtype=dtype)
    q = randn(len(LENGTHS), HEADS, HEAD_SIZE, dtype=dtype)
    everyone = list(range(len(LENGTHS)))
    got = attend(ptx_compiler, sequences, q, everyone)
    plain = sequences.run(q, [1] * len(LENGTHS), "torch")[:, list(SOME_HEADS)]
    for i, length in enumerate(LENGTHS):
        if length == 0:
            assert (got[i] == 0).all()
        else:
            exact = sequences.exact(q[i : i + 1], i)[:, list(SOME_HEADS)]
            assert_accurate(got[i : i + 1], plain[i : i + 1], exact)
    shuffled = random.Random(1).sample(everyone, len(everyone))
    assert torch.equal(attend(ptx_compiler, sequences, q, shuffled, seed=1), got[shuffled])
    for alone in (0, 1):
        assert torch.equal(attend(ptx_compiler, sequences, q, [alone], seed=2)[0], got[alone])


@pytest.mark.parametrize("page_size", [16, 1024])
def test_decode_attention_with_other_pages(page_size: int, ptx_compiler: Compiler) -> None:
    """Blocks of keys that span pages, and pages of several blocks: the same bits."""
    results = []
    for size in (page_size, PAGE_SIZE):
        sequences = Sequences([330], PAGE_SIZE, heads=HEADS, size=HEAD_SIZE, dtype=HALF[0])
        keys, values = sequences.keys[0], sequences.values[0]
        n_pages = -(-330 // size)
        for name, source in (("k_pages", keys), ("v_pages", values)):
            pages = torch.full((n_pages, size, HEADS, HEAD_SIZE), torch.nan, dtype=HALF[0])
            pages.view(-1, HEADS, HEAD_SIZE)[:330] = source
            setattr(sequences, name, pages.transpose(1, 2).contiguous())
        sequences.tables = torch.arange(n_pages)[None]
        q = randn(1, HEADS, HEAD_SIZE, dtype=HALF[0])
        results.append(attend(ptx_compiler, sequences, q, [0]))
    assert torch.equal(*results)


def test_dependent_attention(ptx_compiler: Compiler, dependent: kernels.Backend) -> None:
    sequences = Sequences([300, 20], PAGE_SIZE, heads=HEADS, size=HEAD_SIZE, dtype=HALF[0])
    q = randn(2, HEADS, HEAD_SIZE, dtype=HALF[0])
    want = attend(ptx_compiler, sequences, q, [0, 1])

    def check(code: Code) -> Code:
        assert_starts_the_next_and_waits(code)
        return code

    got = attend(ptx_compiler, sequences, q, [0, 1], backend=dependent, edit=check)
    assert torch.equal(got, want)


# Planted faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fc1"])
def test_a_product_without_one_of_its_barriers_is_a_race(name: str, ptx_compiler: Compiler) -> None:
    case, dtype = PRODUCTS[name], torch.bfloat16
    x, weight = randn(17, case.k, dtype=dtype), randn(case.n, case.k, seed=1, dtype=dtype)

    def run(edit: Callable[[Code], Code]) -> Code:
        with Device(ptx_compiler, programs=lambda p: p == (3, 0, 0), edit=edit) as device:
            kernels.fused_linear(x, weight, **case.options(17, dtype), decode=True, impl="triton")
        return device.ran[-1][0]

    code = run(lambda code: code)
    barriers = code.lines_of("bar", "sync") + code.lines_of("bar", "warp")
    assert len(barriers) > 2
    for line in barriers:
        with pytest.raises(
            PtxError, match=r"^PTX line \d+ \(\w+\.py:\d+\): .* while another thread"
        ):
            run(lambda code, line=line: code.without(line))
    for line in code.lines_of("cp", "async", "wait_group"):
        with pytest.raises(PtxError, match=r"has not arrived yet|in flight"):
            run(lambda code, line=line: code.without(line))


def relaxed(code: Code) -> Code:
    assert "atom.global.gpu.acq_rel" in code.ptx
    return code.with_ptx(code.ptx.replace("gpu.acq_rel", "gpu.relaxed"))


def test_a_product_in_parts_without_its_release_is_a_race(ptx_compiler: Compiler) -> None:
    case, dtype = PRODUCTS["fc2"], torch.bfloat16
    x, weight = randn(17, case.k, dtype=dtype), randn(case.n, case.k, seed=1, dtype=dtype)
    workspace = torch.zeros(64, dtype=torch.int32)
    options = case.options(17, dtype) | {"workspace": workspace, "impl": "triton"}
    with (
        Device(ptx_compiler, programs=lambda p: p[0] == 3, writable=[workspace], edit=relaxed),
        pytest.raises(PtxError, match=r"ld\.global.*is read while another thread writes it"),
    ):
        kernels.fused_linear(x, weight, **options, decode=True)


def test_attention_without_its_release_is_a_race(ptx_compiler: Compiler) -> None:
    """The program that combines the parts may read them because of its atomic's order alone."""
    sequences = Sequences([700], PAGE_SIZE, heads=HEADS, size=HEAD_SIZE, dtype=HALF[0])
    q = randn(1, HEADS, HEAD_SIZE, dtype=HALF[0])

    with pytest.raises(PtxError, match=r"ld\.global.*is read while another thread writes it"):
        attend(ptx_compiler, sequences, q, [0], edit=relaxed)


def test_a_key_outside_the_sequence_is_found(ptx_compiler: Compiler) -> None:
    """A length that is one too large reads a key that was never written."""
    sequences = Sequences([70], PAGE_SIZE, heads=HEADS, size=HEAD_SIZE, dtype=HALF[0])
    sequences.lengths = [71]
    with pytest.raises(PtxError, match=r"(cp\.async|ld\.global).* was never written"):
        attend(ptx_compiler, sequences, randn(1, HEADS, HEAD_SIZE, dtype=HALF[0]), [0])
