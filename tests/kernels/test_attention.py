"""Attention against float64: paged, one step or many queries, and over whole windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bark_fast import kernels
from helpers.kernel_cases import Sequences, exact_bidirectional
from helpers.kernels import DEVICE, DTYPES, assert_accurate, guarded_outputs, randn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_decode(impl, monkeypatch, dtype, page_size: int, size: int) -> None:
    """One query each: one key, a page exactly full, one more, an empty row, several splits."""
    lengths = [1, 16, 17, 0, 300, 33]
    s = Sequences(lengths, page_size, size=size, dtype=dtype)
    with guarded_outputs(monkeypatch):
        s.check(randn(6, 2, size, seed=9, dtype=dtype), [1] * 6, impl, decode=True)


@pytest.mark.slow
def test_decode_long(triton_impl) -> None:
    s = Sequences([1023, 1024, 1025, 2000], 16)
    s.check(randn(4, 2, 16, seed=9), [1] * 4, triton_impl, decode=True)


def test_decode_workspace_is_left_as_it_was(triton_impl) -> None:
    s = Sequences([300, 40, 0], 16)
    q = randn(3, 2, 16, seed=9)
    workspace = kernels.decode_workspace(3, 2, device=DEVICE, impl=triton_impl)
    for _ in range(3):
        s.check(q, [1] * 3, triton_impl, decode=True, workspace=workspace)
        assert not workspace.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_prefill_and_extend(impl, monkeypatch, dtype, page_size: int) -> None:
    """Whole prompts, extensions of what is in the pages, single steps and nothing, packed."""
    lengths, queries = [1, 7, 64, 33, 90, 20, 0], [1, 7, 64, 5, 1, 0, 2]
    s = Sequences(lengths, page_size, dtype=dtype)
    with guarded_outputs(monkeypatch):
        s.check(randn(sum(queries), 2, 16, seed=9, dtype=dtype), queries, impl)


def test_shared_pages(impl) -> None:
    """A prefix that is stored once serves all sequences."""
    s = Sequences([40, 33, 64, 32], 16, shared=2)
    assert (s.tables[:, :2] == s.tables[0, :2]).all()
    s.check(randn(4, 2, 16, seed=9), [1] * 4, impl, decode=True)
    queries = [8, 1, 30, 2]
    s.check(randn(sum(queries), 2, 16, seed=8), queries, impl)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decode", [True, False])
def test_a_sequence_does_not_depend_on_its_neighbours(triton_impl, dtype, decode: bool) -> None:
    lengths = [5, 70, 33, 1, 128, 64, 99, 16, 17, 48, 2, 32, 31, 80, 7, 12, 65, 40]
    queries = [1] * 18 if decode else [5, 20, 1, 1, 30, 64, 3, 16, 2, 9, 1, 32, 4, 8, 7, 1, 65, 5]
    s = Sequences(lengths, 16, dtype=dtype)
    q = randn(sum(queries), 2, 16, seed=9, dtype=dtype)
    together = s.run(q, queries, triton_impl, decode=decode).split(queries)
    parts = q.split(queries)
    for i in range(18):
        alone = kernels.paged_attention(
            parts[i], s.k_pages, s.v_pages, block_tables=s.tables[i : i + 1],
            cu_seqlens_q=torch.tensor([0, queries[i]], device=DEVICE),
            seq_lens=torch.tensor([lengths[i]], device=DEVICE), max_queries=queries[i],
            max_length=lengths[i], decode=decode, impl=triton_impl,
        )  # fmt: skip
        assert torch.equal(alone, together[i])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), page_size=st.sampled_from([1, 2, 8, 16]), decode=st.booleans())
def test_any_lengths(data: st.DataObject, page_size: int, decode: bool) -> None:
    lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=5))
    queries = [1 if decode else data.draw(st.integers(0, n)) for n in lengths]
    if sum(queries) == 0:
        queries[0] = 1
    s = Sequences(lengths, page_size, seed=data.draw(st.integers(0, 99)))
    s.check(randn(sum(queries), 2, 16, seed=9), queries, "triton", decode=decode)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "size"), [(1, 16), (37, 32), (64, 64)])
def test_bidirectional(impl, monkeypatch, dtype, length: int, size: int) -> None:
    qkv = randn(2, length, 3, 3, size, dtype=dtype)
    q, k, v = qkv.unbind(2)
    with guarded_outputs(monkeypatch):
        got = kernels.bidirectional_attention(q, k, v, impl=impl)
    plain = kernels.bidirectional_attention(q, k, v, impl="torch")
    assert_accurate(got, plain, exact_bidirectional(q, k, v))


@pytest.mark.slow
def test_bidirectional_over_a_whole_window() -> None:
    q, k, v = randn(1, 1024, 3, 1, 64).unbind(2)
    got = kernels.bidirectional_attention(q, k, v, impl="triton")
    plain = kernels.bidirectional_attention(q, k, v, impl="torch")
    torch.testing.assert_close(got, plain, rtol=0, atol=1e-5)
