"""Layer norm alone, and the row statistics by which a tiled product normalises its input.

Schedule: one program for each row, which it holds in registers. The mean comes first, then the mean
square of the centred row, so that a large mean costs no precision. One read, one write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bark_fast.kernels.ops import LAYER_NORM_EPS
from bark_fast.kernels.triton.launch import ALWAYS, power_of_two


@triton.jit
def layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    x = tl.load(x_ptr + row * C + c, mask=c < C, other=0.0).to(tl.float32)
    centred = tl.where(c < C, x - tl.sum(x, axis=0) / C, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / C + eps)
    y = centred * rstd * tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * C + c, y.to(out_ptr.dtype.element_ty), mask=c < C)


@triton.jit
def row_stats_kernel(x_ptr, out_ptr, eps, C: tl.constexpr, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    x = tl.load(x_ptr + row * C + c, mask=c < C, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / C
    centred = tl.where(c < C, x - mean, 0.0)
    tl.store(out_ptr + row * 2, mean)
    tl.store(out_ptr + row * 2 + 1, 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / C + eps))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `Backend.layer_norm`."""
    x = x.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x)
    block = power_of_two(width)
    layer_norm_kernel[(x.numel() // width,)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        LAYER_NORM_EPS,
        C=width,
        BLOCK_C=block,
        HAS_BIAS=bias is not None,
        num_warps=_num_warps(block),
        **ALWAYS,
    )
    return out


def row_stats(x: Tensor) -> Tensor:
    """Return mean and reciprocal standard deviation of each row of x [N, C], float32 [N, 2]."""
    out = torch.empty(len(x), 2, dtype=torch.float32, device=x.device)
    block = power_of_two(x.shape[1])
    row_stats_kernel[(len(x),)](
        x,
        out,
        LAYER_NORM_EPS,
        C=x.shape[1],
        BLOCK_C=block,
        num_warps=_num_warps(block),
        **ALWAYS,
    )
    return out


def _num_warps(block: int) -> int:
    """Return the warps of a program for a row of `block` columns: 8 a thread, or a single warp.

    With one column a thread the compiler fuses the first addition between threads with the square
    before it. The two threads of an exchange then round different terms, the threads of a warp
    disagree about its sum, and which of them stores it for the other warps is undefined.
    """
    return min(4, max(1, block // 256))
