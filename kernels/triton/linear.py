"""Products with a weight matrix, and everything that precedes and follows them in a block.

There are two schedules, `linear_decode` and tiles. Which one runs is a property of the call, never
of the number of rows, so that a row's bits do not depend on its neighbours. Tiles have two kernels,
`linear_tile` and `linear_persistent`; the number of rows may choose between them, because both
give a row to the same instructions in the same order (`schedules.TileLaunch.order`). All add in
float32 and round once, at the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bark_fast.kernels.ops import LAYER_NORM_EPS, Norm, Weight
from bark_fast.kernels.triton import linear_decode, linear_persistent, linear_tile
from bark_fast.kernels.triton.device import device_of
from bark_fast.kernels.triton.launch import (
    ALWAYS,
    can_launch_dependent,
    ceil_div,
    dot_precision,
    pdl_option,
)
from bark_fast.kernels.triton.norm import layer_norm, row_stats
from bark_fast.kernels.triton.schedules import ROWS_AT_ONCE, DecodeLaunch, TileLaunch, choose


@dataclass(frozen=True)
class PagedKV:
    """The paged cache that a QKV product writes its keys and values to."""

    k_pages: Tensor  # [P, H, page_size, D], contiguous
    v_pages: Tensor
    slot_mapping: Tensor  # int64 [N]


def fused_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    decode: bool = False,
    workspace: Tensor | None = None,
    pdl: bool,
    paged: PagedKV | None = None,
) -> Tensor:
    """See `Backend.fused_linear` and, with `paged`, `Backend.qkv_to_pages`."""
    assert isinstance(weight, Tensor), "the weight was packed for another backend"
    x = x.contiguous()
    m, k = x.shape
    n = len(weight)
    out = torch.empty(m, n if paged is None else n // 3, dtype=x.dtype, device=x.device)
    # A launch needs a valid pointer even for an argument that it does not use.
    common: dict[str, Any] = {
        "N": n,
        "K": k,
        "HAS_BIAS": bias is not None,
        "GELU": gelu,
        "HAS_RESIDUAL": residual is not None,
        "QKV": paged is not None,
        "HEADS": 1 if paged is None else paged.k_pages.shape[1],
        "HEAD_SIZE": 1 if paged is None else paged.k_pages.shape[3],
        "PAGE_SIZE": 1 if paged is None else paged.k_pages.shape[2],
        **ALWAYS,
    }
    ends = (
        x if residual is None else residual.contiguous(),
        out,
        *((x, x, x) if paged is None else (paged.k_pages, paged.v_pages, paged.slot_mapping)),
        m,
    )
    bias_or_x = x if bias is None else bias
    if decode:
        launch = choose(DecodeLaunch, (n, k), x, rows=m)
        gamma, beta = (None, None) if norm is None else norm
        norms = (x if gamma is None else gamma, x if beta is None else beta)
        grid = launch.grid(m, n, k)
        splits = grid[1]
        # In float32 the tensor cores do not add what the statistics are made of.
        own_stats = splits == 1 and x.dtype != torch.float32
        parts = arrived = x
        if splits > 1:
            parts = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
            arrived = linear_decode.counters(workspace, grid, x.device)
        pdl = pdl and can_launch_dependent(x)
        linear_decode.decode_kernel[grid](
            x, weight, bias_or_x, x if gamma is None or own_stats else row_stats(x), *norms,
            *ends[:-1], parts, arrived, m, LAYER_NORM_EPS,
            BLOCK_N=launch.block_n, BLOCK_K=launch.block_k, SLICES=launch.num_warps,
            HAS_NORM=gamma is not None, HAS_NORM_BIAS=beta is not None,
            ONE_TILE=m <= ROWS_AT_ONCE, OWN_STATS=own_stats, PDL=pdl, num_warps=launch.num_warps,
            maxnreg=launch.registers(k, pdl=pdl),
            **pdl_option(pdl), **common,
        )  # fmt: skip
    else:
        tile = choose(TileLaunch, (n, k), x, rows=m)
        if norm is not None:
            x = layer_norm(x, *norm)
        common |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
        common |= {"PRECISION": dot_precision(x.dtype)}
        common |= {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        rows, columns = ceil_div(m, tile.block_m), ceil_div(n, tile.block_n)
        if tile.persistent:
            programs = min(rows * columns, device_of(x).multiprocessors)
            linear_persistent.persistent_kernel[(programs,)](
                TensorDescriptor.from_tensor(x, [tile.block_m, tile.block_k]),
                TensorDescriptor.from_tensor(weight, [tile.block_n, tile.block_k]),
                bias_or_x, *ends, **common,
            )  # fmt: skip
        else:
            linear_tile.tile_kernel[(rows, columns)](x, weight, bias_or_x, *ends, **common)
    return out
