"""The sum of a frame's codebook vectors.

Schedule: a program takes BLOCK_F frames and all channels. It gathers rows, whose channels are
contiguous, and stores the transpose, which is the layout that the decoder's first convolution
reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bark_fast.kernels.triton.launch import ALWAYS, ceil_div, power_of_two

BLOCK_F = 32  # 32 x 128 channels: 32 float32 registers a thread with 4 warps


# One kernel for every number of frames. (Rows of odd length have no wide loads anyway.)
@triton.jit(do_not_specialize=["F"])
def codebook_sum_kernel(
    codes_ptr,
    tables_ptr,
    out_ptr,
    K,
    F,
    V,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    b = tl.program_id(1).to(tl.int64)
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    c = tl.arange(0, BLOCK_C)
    mask = (f < F)[:, None] & (c < C)[None, :]
    total = tl.zeros((BLOCK_F, BLOCK_C), tl.float32)
    for k in range(K):
        code = tl.load(codes_ptr + (b * K + k) * F + f, mask=f < F, other=0)
        row = (k * V + code) * C
        rows = tl.load(tables_ptr + row[:, None] + c[None, :], mask=mask, other=0.0)
        total += rows.to(tl.float32)
    tl.store(
        out_ptr + (b * C + c[None, :]) * F + f[:, None],
        total.to(out_ptr.dtype.element_ty),
        mask=mask,
    )


def codebook_sum(codes: Tensor, tables: Tensor) -> Tensor:
    """See `Backend.codebook_sum`."""
    codes, tables = codes.contiguous(), tables.contiguous()
    batch, books, frames = codes.shape
    _, vocabulary, channels = tables.shape
    out = torch.empty(batch, channels, frames, dtype=tables.dtype, device=codes.device)
    codebook_sum_kernel[(ceil_div(frames, BLOCK_F), batch)](
        codes, tables, out, books, frames, vocabulary,
        C=channels, BLOCK_C=power_of_two(channels), BLOCK_F=BLOCK_F, num_warps=4, **ALWAYS,
    )  # fmt: skip
    return out
