"""The compiled code of what is around a decode step's layers, and of prefill and fine, executed.

See `test_executed_ptx.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from bark_fast import kernels
from bark_fast.kernels.aot_cases import SHAPES
from bark_fast.kernels.triton.norm import row_stats
from helpers.kernel_cases import Sequences, exact_bidirectional, exact_linear, exact_norm
from helpers.kernels import assert_accurate, randn
from helpers.ptx import Code, Compiler, Device, PtxError
from helpers.ptx.dependents import assert_starts_the_next_and_waits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cpu_tensors")]

HALF = [torch.bfloat16, torch.float16]
PAGE_SIZE, HEAD_SIZE = 64, 64
BARK = SHAPES["large"]
WIDTH = BARK.width

# Prefill and fine: products and attention by wgmma ------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
def test_tiled_products(dtype: torch.dtype, ptx_compiler: Compiler) -> None:
    """A whole tile and one of two rows; a row's bits do not depend on the others."""
    x, weight = randn(130, 256, dtype=dtype), randn(256, 256, seed=1, dtype=dtype) / 16
    with Device(ptx_compiler, programs=lambda p: p[1] == 1):
        got = kernels.fused_linear(x, weight, gelu=True, impl="triton")[:, 128:]
    plain, exact = (f(x, weight, gelu=True)[:, 128:] for f in (kernels.fused_linear, exact_linear))
    assert_accurate(got, plain, exact)
    with Device(ptx_compiler, programs=lambda p: p[1] == 1) as device:
        alone = kernels.fused_linear(x[128:].clone(), weight, gelu=True, impl="triton")[:, 128:]
    assert torch.equal(alone, got[128:])
    assert "wgmma.mma_async" in device.ran[-1][0].ptx


def test_a_tile_without_one_of_its_waits_is_a_race(ptx_compiler: Compiler) -> None:
    """Each barrier, each wait for copies and each wait for products is needed, and missed."""
    x, weight = randn(130, 256, dtype=HALF[0]), randn(128, 256, seed=1, dtype=HALF[0])

    def run(edit: Callable[[Code], Code]) -> Code:
        with Device(ptx_compiler, programs=lambda p: p == (0, 0, 0), edit=edit) as device:
            kernels.fused_linear(x, weight, impl="triton")
        return device.ran[-1][0]

    code = run(lambda code: code)
    arrivals = code.lines_of("cp", "async", "wait_group")
    # Triton 3.6 has one before anything has arrived, too.
    barriers = [line for line in code.lines_of("bar", "sync") if line > arrivals[0]]
    waits = [*arrivals, *barriers, *code.lines_of("wgmma", "wait_group")]
    assert len(waits) >= 6
    for line in waits:
        with pytest.raises(PtxError, match=r"another thread|has not arrived|in flight"):
            run(lambda code, line=line: code.without(line))


def test_tiled_keys_and_values_with_a_norm(ptx_compiler: Compiler) -> None:
    """The statistics' launch and the tile's; keys go to pages of the engine's size."""
    dtype, rows, heads = torch.bfloat16, 40, 2
    width = heads * HEAD_SIZE
    x, weight = randn(rows, width, dtype=dtype), randn(3 * width, width, seed=1, dtype=dtype) / 11
    norm = (1 + randn(width, seed=2, dtype=dtype) / 10, None)
    pages = torch.full((2, 1, heads, PAGE_SIZE, HEAD_SIZE), torch.nan, dtype=dtype)
    k_pages, v_pages = pages[0].clone(), pages[1].clone()
    with Device(ptx_compiler, writable=[k_pages, v_pages]):
        q = kernels.qkv_to_pages(
            x, weight, None, norm=norm, k_pages=k_pages, v_pages=v_pages,
            slot_mapping=torch.arange(rows), impl="triton",
        )  # fmt: skip
    stored = [p[0, :, :rows].transpose(0, 1).flatten(1) for p in (k_pages, v_pages)]
    got = torch.cat([q.flatten(1), *stored], dim=1)
    assert_accurate(
        got, kernels.fused_linear(x, weight, norm=norm), exact_linear(x, weight, norm=norm)
    )
    assert k_pages[0, :, rows:].isnan().all()


@pytest.mark.parametrize("dtype", HALF)
def test_attention_of_prompts(dtype: torch.dtype, ptx_compiler: Compiler) -> None:
    sequences = Sequences([130, 70], PAGE_SIZE, heads=2, size=HEAD_SIZE, dtype=dtype)
    q = randn(130 + 20, 2, HEAD_SIZE, dtype=dtype)
    with Device(ptx_compiler):
        sequences.check(q, [130, 20], "triton")


def test_attention_of_frames(ptx_compiler: Compiler) -> None:
    """Slices of one projection; 70 frames end within a block."""
    q, k, v = randn(2, 70, 3, 2, HEAD_SIZE, dtype=HALF[0]).unbind(2)
    with Device(ptx_compiler):
        got = kernels.bidirectional_attention(q, k, v, impl="triton")
    assert_accurate(got, kernels.bidirectional_attention(q, k, v), exact_bidirectional(q, k, v))


# What is before and behind the layers -------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tokens", [1, 4])
def test_embedding(
    tokens: int, dtype: torch.dtype, ptx_compiler: Compiler, dependent: kernels.Backend
) -> None:
    """A decode step's, and with a silent stream that of a prompt; only the rows asked for exist."""
    table = torch.full((2, 50, WIDTH), torch.nan, dtype=dtype)
    ids = torch.tensor([[3, 49, 0, 7], [5, -1, 5, -1]])[:, :tokens].clone()
    for stream in range(2):
        for i in ids[stream][ids[stream] >= 0]:
            table[stream, i] = randn(WIDTH, seed=int(i) + 100 * stream, dtype=dtype)
    positions, places = torch.tensor([7, 0, 1, 30])[:tokens].clone(), randn(40, WIDTH, dtype=dtype)
    with Device(ptx_compiler) as device:
        got = dependent.embedding_sum(ids, table, positions=positions, position_table=places)
    assert_starts_the_next_and_waits(device.ran[0][0])
    exact = places[positions].double()
    for stream in range(2):
        used = ids[stream] >= 0
        exact[used] += table[stream][ids[stream][used]].double()
    plain = kernels.embedding_sum(
        ids, table.nan_to_num(), positions=positions, position_table=places
    )
    assert_accurate(got, plain, exact)


@pytest.mark.parametrize("width", [64, 128, 500, 768, 1024])
def test_layer_norm(width: int, ptx_compiler: Compiler) -> None:
    """All threads of a program agree on the row's mean and deviation, whatever its width."""
    dtype = torch.bfloat16
    x, weight, bias = (randn(*shape, width, dtype=dtype) for shape in ((3,), (), ()))
    with Device(ptx_compiler):
        got = kernels.layer_norm(x, weight, bias, impl="triton")
        stats = row_stats(x)
    assert_accurate(got, kernels.layer_norm(x, weight, bias), exact_norm(x, weight, bias))
    assert torch.allclose(stats[:, 0].double(), x.double().mean(1), atol=1e-6)


def decode_state(rows: int, *, limits: list[int], ended: int) -> kernels.DecodeState:
    positions = torch.arange(rows) * 60 + 62  # 62, 122, ...: some cross a page with this token
    generator = torch.Generator().manual_seed(1)
    finished = torch.zeros(rows, dtype=torch.int32)
    finished[ended] = 1
    return kernels.DecodeState(
        token_ids=torch.zeros(rows, dtype=torch.int64), positions=positions,
        seq_lens=positions + 1, slot_mapping=torch.zeros(rows, dtype=torch.int64),
        block_tables=torch.randperm(16 * rows, generator=generator).view(rows, 16),
        num_generated=torch.arange(rows) + 3, limits=torch.tensor(limits), finished=finished,
        history=torch.full((rows, 16), -1), page_size=PAGE_SIZE,
    )  # fmt: skip


STATE = (
    "token_ids", "positions", "seq_lens", "slot_mapping", "num_generated", "finished", "history",
)  # fmt: skip


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_sampler(
    stage: str, dtype: torch.dtype, ptx_compiler: Compiler, dependent: kernels.Backend
) -> None:
    """The tokens and the next step's state are those of plain torch."""
    semantic = stage == "semantic"
    columns = BARK.semantic_ids if semantic else BARK.coarse_ids
    space = kernels.TokenSpace(
        stage=0 if semantic else 1, first_id=0 if semantic else 10_000, has_end=semantic,
        n_ranges=1 if semantic else 2, range_size=1024,
    )  # fmt: skip
    rows, ended = 6, 5
    logits = randn(rows, columns, seed=3, dtype=dtype) * 2
    logits[3, -1] = 14  # so likely that the semantic stage ends
    # Whatever else a row can ask for is off: 0.
    names = [field.name for field in dataclasses.fields(kernels.SamplingMetadata)]
    fields = {name: torch.zeros(rows, dtype=torch.int64) for name in names}
    fields |= {
        "temperature": torch.tensor([0.7, 0.0, 1.0, 0.7, 0.5, 0.7]),
        "top_k": torch.tensor([0, 0, 50, 0, 1000, 0]),
        "top_p": torch.tensor([1.0, 1.0, 0.9, 1.0, 1.0, 1.0]),
        "seeds": torch.tensor([1, -5, 2**40, 7, -(2**63), 9]),
        "min_eos_p": torch.full((rows,), 0.2),
        "min_new_tokens": torch.tensor([0, 0, 99, 0, 0, 0]),
    }
    metadata = kernels.SamplingMetadata(**fields)
    expected = decode_state(rows, limits=[4, 99, 99, 99, 99, 99], ended=ended)
    want = kernels.sample(logits, metadata, space, state=expected)
    state = decode_state(rows, limits=[4, 99, 99, 99, 99, 99], ended=ended)
    device = Device(ptx_compiler, writable=[getattr(state, name) for name in STATE], seed=4)
    with device:
        got = dependent.sample(logits, metadata, space, state=state)
    assert_starts_the_next_and_waits(device.ran[0][0])
    running = [row for row in range(rows) if row != ended]
    assert got[running].tolist() == want[running].tolist()
    for name in STATE:
        assert torch.equal(getattr(state, name), getattr(expected, name)), name
    assert bool(state.finished[3]) == semantic
