"""Logits that are no numbers give no token, on every backend, and harm no other row."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.kernels import NO_TOKEN, DecodeState, SamplingMetadata, TokenSpace
from helpers.kernels import DEVICE, randn

NAN, INF = math.nan, math.inf
COLUMNS = 40


@pytest.fixture(params=["torch", "cpu", "triton", "native"])
def any_impl(request: pytest.FixtureRequest) -> str:
    missing = kernels.why_not_native(DEVICE, torch.float32)
    if request.param == "native" and missing:
        pytest.skip(f"no native kernels here: {missing}")
    return request.param


def _metadata(n: int, temperature: float, top_k: int = 0, top_p: float = 1.0) -> SamplingMetadata:
    def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((n,), value, dtype=dtype, device=DEVICE)

    return SamplingMetadata(
        temperature=full(temperature),
        top_k=full(top_k, torch.int64),
        top_p=full(top_p),
        seeds=torch.arange(n, device=DEVICE),
        min_eos_p=full(0.3),
        min_new_tokens=full(0, torch.int64),
        suno_rules=full(0, torch.int64),
    )


# What is in a row's logits, and whether a token can be drawn.
ROWS: list[tuple[dict[int, float], bool]] = [
    ({}, True),
    ({7: NAN}, False),
    ({0: NAN}, False),
    ({COLUMNS - 1: NAN}, False),  # the end token's
    ({20: INF}, False),
    ({20: -INF}, True),
    ({20: INF, 3: -INF, 4: NAN}, False),
    (dict.fromkeys(range(COLUMNS), -INF), False),
    (dict.fromkeys(range(COLUMNS), NAN), False),
    (dict.fromkeys(range(COLUMNS - 1), -INF), True),  # the end token alone
    ({5: 3e38, 6: -3e38}, True),
    ({COLUMNS - 1: INF}, False),
]


def _logits() -> Tensor:
    logits = randn(len(ROWS), COLUMNS)
    for row, (changes, _) in enumerate(ROWS):
        for column, value in changes.items():
            logits[row, column] = value
    return logits


@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 5, 1.0), (1.0, 0, 0.9)]
)
def test_no_token(any_impl, has_end: bool, temperature: float, top_k: int, top_p: float) -> None:
    logits, n = _logits(), len(ROWS)
    metadata = _metadata(n, temperature, top_k, top_p)
    space = TokenSpace(stage=0, has_end=has_end)
    positions = torch.arange(n, device=DEVICE)

    def draw(logits: Tensor, rows: slice = slice(None)) -> list[int]:
        own = {f.name: getattr(metadata, f.name)[rows].contiguous() for f in fields(metadata)}
        chosen = kernels.sample(
            logits[rows], SamplingMetadata(**own), space, positions=positions[rows], impl=any_impl
        )
        return chosen.tolist()

    got = draw(logits)
    assert [column != NO_TOKEN for column in got] == [good for _, good in ROWS]
    assert all(column >= NO_TOKEN for column in got)
    # Each row is what it is alone, whatever its neighbours are.
    for row in range(n):
        assert draw(logits, slice(row, row + 1)) == [got[row]]


def test_only_what_may_be_drawn_counts(any_impl) -> None:
    """Of alternating codebooks, the other one's logits are not looked at."""
    logits = randn(4, COLUMNS)
    logits[0, 25] = logits[1, 5] = logits[2, 5] = logits[3, 25] = NAN
    positions = torch.tensor([0, 1, 0, 1], device=DEVICE)
    space = TokenSpace(stage=1, n_ranges=2, range_size=20)
    got = kernels.sample(
        logits, _metadata(4, 0.7), space, positions=positions, impl=any_impl
    ).tolist()
    assert [column == NO_TOKEN for column in got] == [False, False, True, True]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("has_end", [True, False])
def test_a_row_ends_with_it(any_impl, has_end: bool, temperature: float) -> None:
    n, page_size = 3, 4

    def full(value: int, *shape: int, of: torch.dtype = torch.int64) -> Tensor:
        return torch.full(shape, value, dtype=of, device=DEVICE)

    state = DecodeState(
        token_ids=full(9, n), positions=full(5, n), seq_lens=full(6, n), slot_mapping=full(5, n),
        block_tables=torch.arange(n * 4, device=DEVICE).view(n, 4), num_generated=full(2, n),
        limits=full(9, n), finished=full(0, n, of=torch.int32), history=full(-77, n, 8),
        page_size=page_size,
    )  # fmt: skip
    logits = randn(n, COLUMNS)
    logits[:, -1] = -9  # no end
    logits[1, 3] = NAN
    space = TokenSpace(stage=0, first_id=1000, has_end=has_end)
    for _ in range(2):
        kernels.sample(logits, _metadata(n, temperature), space, state=state, impl=any_impl)
    assert state.finished.tolist() == [0, 1, 0]
    assert state.num_generated.tolist() == [4, 3, 4]
    assert state.history[1].tolist() == [-77, -77, NO_TOKEN, *[-77] * 5]
    assert (state.history[[0, 2], 2:4] >= 1000).all()
    assert (state.token_ids[1], state.seq_lens[1], state.slot_mapping[1]) == (9, 0, -1)


@pytest.mark.parametrize("value", [NAN, INF])
def test_numbers_do_not_come_back(any_impl, value: float) -> None:
    """What is no number in a state stays none through products and attention."""
    x = randn(3, 64)
    x[1, 5] = value
    ops = kernels.backend(any_impl)
    weight = ops.pack_weight(randn(96, 64, seed=1))
    norm = (randn(64, seed=2), None)
    for product in (
        ops.fused_linear(x, weight, norm=norm),
        ops.fused_linear(x, weight, gelu=True, decode=True),
    ):
        assert not product[1].isfinite().all()
        assert product[[0, 2]].isfinite().all()
    q, k, v = (randn(3, 1, 2, 32, seed=s).expand(-1, 20, -1, -1).contiguous() for s in (3, 4, 5))
    q = q.abs()  # no product of opposite signs: -infinity is a score of no weight
    q[1, 7, 0, 3] = value
    k[2, 4, 1, 3] = value
    attended = ops.bidirectional_attention(q, k, v)
    assert attended[0].isfinite().all()
    assert not attended[1, 7, 0].isfinite().any()
    assert not attended[2, :, 1].isfinite().all(dim=-1).any()
    assert attended[2, :, 0].isfinite().all()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_attention_of_one_query(any_impl, value: float) -> None:
    ops, length = kernels.backend(any_impl), 21
    pages = [randn(2, 2, 32, 32, seed=s) for s in (1, 2)]
    pages[0][1, 0, 13, 2] = value
    out = ops.paged_attention(
        randn(2, 2, 32, seed=3).abs(), *pages, block_tables=torch.arange(2, device=DEVICE)[:, None],
        seq_lens=torch.full((2,), length, device=DEVICE), max_queries=1, max_length=32, decode=True,
        workspace=ops.decode_workspace(2, 2, device=DEVICE),
    )  # fmt: skip
    assert out[0].isfinite().all()
    assert out[1, 1].isfinite().all()
    if value != -INF:  # a key of no weight
        assert not out[1, 0].isfinite().any()


def test_products_in_8_bits() -> None:
    missing = kernels.why_not_native(DEVICE, torch.float32, int8=True)
    if missing:
        pytest.skip(f"no 8-bit weights here: {missing}")
    ops = kernels.backend("int8")
    weight = ops.pack_weight(randn(96, 64, seed=1))
    for value in (NAN, INF, -INF):
        x = randn(3, 64)
        x[1, 40] = value
        product = ops.fused_linear(x, weight)
        assert not product[1].isfinite().any()
        assert product[[0, 2]].isfinite().all()
