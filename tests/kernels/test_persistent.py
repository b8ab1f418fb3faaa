"""The persistent tiles; in Triton's interpreter, small ones on few multiprocessors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bark_fast import kernels
from bark_fast.kernels.triton import linear_persistent, linear_tile, schedules
from bark_fast.kernels.triton.device import Device, assuming
from bark_fast.kernels.triton.schedules import (
    PERSISTENT,
    SHORT,
    TileLaunch,
    choose,
    trying,
)
from helpers.kernel_cases import EXTRAS, exact_linear, extras_of
from helpers.kernels import DTYPES, assert_accurate, guarded_outputs, products_in_order, randn

SMALL = TileLaunch(block_m=16, block_n=16, block_k=16, num_warps=4, num_stages=1, persistent=True)
H100, B200, L4 = (
    Device("NVIDIA H100", (9, 0), 132), Device("NVIDIA B200", (10, 0), 148),
    Device("NVIDIA L4", (8, 9), 58),
)  # fmt: skip
RTX_5090 = Device("NVIDIA GeForce RTX 5090", (12, 0), 170)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", EXTRAS, ids=lambda s: "+".join(s) or "plain")
@pytest.mark.parametrize(("n", "m", "k"), [(1, 33, 48), (19, 40, 104), (50, 17, 8)])
def test_products(monkeypatch, dtype, spec, n: int, m: int, k: int) -> None:
    """Tiles that hang over x, over W, and over K; programs with no tile, one and several."""
    x, weight = randn(n, k, dtype=dtype), randn(m, k, seed=1, dtype=dtype) / math.sqrt(k)
    extras = extras_of(spec, n, m, k, dtype)
    with trying(SMALL), guarded_outputs(monkeypatch):
        got = kernels.fused_linear(x, weight, impl="triton", **extras)
    plain = kernels.fused_linear(x, weight, impl="torch", **extras)
    assert_accurate(got, plain, exact_linear(x, weight, **extras))


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_keys_and_values(monkeypatch, dtype) -> None:
    n, heads, size, page_size = 21, 2, 16, 4
    width = heads * size
    x, weight = randn(n, width, dtype=dtype), randn(3 * width, width, seed=1, dtype=dtype) / 6
    norm = (randn(width, seed=2, dtype=dtype), None)
    slots = torch.randperm(28, generator=torch.Generator().manual_seed(3))[:n].to(x.device)
    slots[5] = -1
    found = []
    for persistent in (True, False):
        pages = torch.full((2, 7, heads, page_size, size), math.nan, dtype=dtype, device=x.device)
        with trying(replace(SMALL, persistent=persistent)), products_in_order():
            q = kernels.qkv_to_pages(
                x, weight, None, norm=norm, k_pages=pages[0], v_pages=pages[1],
                slot_mapping=slots, impl="triton",
            )  # fmt: skip
        found.append((q, pages))
    (q, pages), (other_q, other_pages) = found
    exact = exact_linear(x, weight, norm=norm).view(n, 3, heads, size)
    plain = kernels.fused_linear(x, weight, norm=norm).view(n, 3, heads, size)
    assert_accurate(q, plain[:, 0].contiguous(), exact[:, 0])
    assert torch.equal(q, other_q)
    assert torch.equal(pages.nan_to_num(77), other_pages.nan_to_num(77))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_either_kernel(dtype) -> None:
    """However many rows there are, and whichever kernel their number chooses."""
    x, weight = randn(34, 32, dtype=dtype), randn(20, 32, seed=1, dtype=dtype)

    def run(rows: slice, launch: TileLaunch) -> torch.Tensor:
        with trying(launch):
            return kernels.fused_linear(x[rows], weight, gelu=True, impl="triton")

    with products_in_order():
        together = run(slice(34), SMALL)
        for launch in (SMALL, replace(SMALL, persistent=False), replace(SMALL, block_m=32)):
            assert torch.equal(run(slice(3, 4), launch)[0], together[3])
            assert torch.equal(run(slice(20, 34), launch), together[20:])


# Which of the two ---------------------------------------------------------------------------------


USUAL = schedules.default(TileLaunch, torch.bfloat16)


def chosen(device: Device, rows: int, n: int, k: int, dtype=torch.bfloat16) -> TileLaunch:
    x = torch.empty(1, k, dtype=dtype, device="meta")
    with assuming(device):
        return choose(TileLaunch, (n, k), x, rows=rows)


@pytest.mark.parametrize(
    ("rows", "n", "launch"),
    [
        (8192, 1024, PERSISTENT),
        (8192, 4096, PERSISTENT),
        (1024, 3072, PERSISTENT),  # 96 tiles for 132 multiprocessors
        (300, 4096, USUAL),  # 64 large, 96 of the usual ones
        (1024, 1024, SHORT),  # 32 and 64
        (300, 1024, SHORT),
    ],
)
def test_there_must_be_tiles_enough(rows: int, n: int, launch: TileLaunch) -> None:
    assert chosen(H100, rows, n, 1024) == launch


def test_other_devices_keep_the_other_tiles() -> None:
    assert chosen(L4, 8192, 1024, 1024) == USUAL
    assert chosen(L4, 300, 1024, 1024) == SHORT
    float32 = schedules.default(TileLaunch, torch.float32)
    for rows in (300, 8192):
        assert chosen(B200, rows, 1024, 1024) == USUAL
        assert chosen(RTX_5090, rows, 1024, 1024) == USUAL
        assert chosen(H100, rows, 1024, 1024, dtype=torch.float32) == float32
    assert chosen(H100, 8192, 1024, 100) == USUAL, "a descriptor's rows are units of 16 bytes"


def test_a_table_of_another_device_does_not_change_that(monkeypatch) -> None:
    key = ("TileLaunch", "torch.bfloat16", (1024, 1024))
    table = schedules.Table(H100, {key: ((schedules.ANY_ROWS, PERSISTENT),)}, {})
    monkeypatch.setattr(schedules, "_table_of", lambda device: table)
    assert chosen(B200, 8192, 1024, 1024) == USUAL
    assert chosen(H100, 1, 1024, 1024) == PERSISTENT, "as measured"


def test_the_kernels_may_be_chosen_by_rows() -> None:
    """They add in one order: instructions of one width, along K."""
    assert PERSISTENT.order == USUAL.order == SHORT.order == (128,)
    assert replace(PERSISTENT, block_n=256).order == (256,)
    # With too few rows for its warps, they share the columns.
    assert replace(USUAL, block_m=64).order == (64,)


def test_both_kernels_have_the_same_arguments_behind_x_and_the_weight() -> None:
    """`linear.fused_linear` launches either with one list."""
    tile, persistent = (
        kernel.arg_names
        for kernel in (linear_tile.tile_kernel, linear_persistent.persistent_kernel)
    )
    assert tile[2:] == persistent[2:]
