"""Sums of embeddings: K streams of ids into K tables and a position embedding.

Schedule: one program for each token, which holds its row of the sum in registers; each stream adds
one row. One read of each row, one write. Streams that share a table have a table stride of 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bark_fast.kernels.triton.launch import (
    ALWAYS,
    can_launch_dependent,
    pdl_option,
    power_of_two,
)


# One kernel for every number of tokens and streams.
@triton.jit(do_not_specialize=["N", "K"])
def embedding_sum_kernel(
    ids_ptr,
    tables_ptr,
    positions_ptr,
    position_table_ptr,
    out_ptr,
    table_stride,
    N,
    K,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        # The ids tell which rows to read, so nothing can be read before them.
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    position = tl.load(positions_ptr + token)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for stream in range(K):
        id = tl.load(ids_ptr + stream * N + token)
        row = tl.load(
            tables_ptr + stream * table_stride + id * C + c,
            mask=c < tl.where(id >= 0, C, 0),
            other=0.0,
        )
        total += row.to(tl.float32)
    total += tl.load(position_table_ptr + position * C + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * C + c, total.to(out_ptr.dtype.element_ty), mask=mask)


def embedding_sum(
    ids: Tensor, tables: Tensor, *, positions: Tensor, position_table: Tensor, pdl: bool
) -> Tensor:
    """See `Backend.embedding_sum`."""
    streams, n = ids.shape
    width = position_table.shape[1]
    assert tables.stride()[1:] == (width, 1), "each table must be contiguous"
    out = torch.empty(n, width, dtype=position_table.dtype, device=ids.device)
    pdl = pdl and can_launch_dependent(tables)
    embedding_sum_kernel[(n,)](
        ids.contiguous(), tables, positions, position_table, out, tables.stride(0), n, streams,
        C=width, BLOCK_C=power_of_two(width), PDL=pdl, num_warps=4, **pdl_option(pdl), **ALWAYS,
    )  # fmt: skip
    return out
