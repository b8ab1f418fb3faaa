"""Sums of gathered rows: embeddings and codebooks."""

from __future__ import annotations

import pytest
import torch

from bark_fast import kernels
from helpers.kernels import (
    DTYPES,
    assert_accurate,
    assert_rows_independent,
    guarded_outputs,
    integers,
    randn,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("streams", "n", "width"), [(1, 1, 48), (3, 7, 768), (8, 5, 64)])
@pytest.mark.parametrize("share", [True, False])
def test_embedding_sum(impl, monkeypatch, dtype, streams, n, width, share) -> None:
    tables = randn(1 if share else streams, 11, width, dtype=dtype)
    tables = tables.expand(streams, -1, -1)
    position_table = randn(9, width, seed=5, dtype=dtype)
    ids, positions = integers(11, streams, n, low=-1), integers(9, n, seed=1)
    with guarded_outputs(monkeypatch):
        got = kernels.embedding_sum(
            ids, tables, positions=positions, position_table=position_table, impl=impl
        )
    exact = position_table[positions].double()
    for k in range(streams):
        exact += tables[k][ids[k].clamp(min=0)].double() * (ids[k] >= 0)[:, None]
    plain = kernels.embedding_sum(
        ids, tables, positions=positions, position_table=position_table, impl="torch"
    )
    assert_accurate(got, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_does_not_depend_on_its_neighbours(triton_impl, dtype) -> None:
    tables, position_table = randn(3, 11, 48, dtype=dtype), randn(18, 48, seed=5, dtype=dtype)
    ids, positions = integers(11, 3, 18, low=-1), integers(18, 18, seed=1)
    assert_rows_independent(
        lambda rows: kernels.embedding_sum(
            ids[:, rows],
            tables,
            positions=positions[rows],
            position_table=position_table,
            impl=triton_impl,
        ),
        18,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("books", "frames", "channels"), [(8, 1, 16), (3, 37, 128), (2, 32, 100)])
def test_codebook_sum(impl, monkeypatch, dtype, books, frames, channels) -> None:
    codes, tables = integers(10, 2, books, frames), randn(books, 10, channels, dtype=dtype)
    with guarded_outputs(monkeypatch):
        got = kernels.codebook_sum(codes, tables, impl=impl)
    assert got.is_contiguous()
    exact = sum(tables[k][codes[:, k]].double() for k in range(books)).transpose(1, 2)
    plain = kernels.codebook_sum(codes, tables, impl="torch")
    assert_accurate(got, plain, exact)
    assert torch.equal(kernels.codebook_sum(codes[1:], tables, impl=impl)[0], got[1])
