"""Products of many rows with a weight matrix: prefill and the fine stage.

Schedule: tensor-core tiles of x @ W^T. A layer norm is a launch of its own, so that tiles of x go
from memory to the tensor cores without passing through registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bark_fast.kernels.triton.epilogue import epilogue


# One kernel for every number of rows: nothing in it gains from knowing that they are many times 16.
@triton.jit(do_not_specialize=["M"])
def tile_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slot_mapping_ptr,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    QKV: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Neighbouring programs share a tile of W and go down the rows, so that W stays in L2.
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + m[:, None] * K + k[None, :]
    w_ptrs = weight_ptr + n[None, :].to(tl.int64) * K + k[:, None]
    m_mask, n_mask = (m < M)[:, None], (n < N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = start + k < K
        x = tl.load(x_ptrs + start, mask=m_mask & inside[None, :], other=0.0)
        w = tl.load(w_ptrs + start, mask=n_mask & inside[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    epilogue(
        acc, m[:, None], n[None, :], m_mask & n_mask, bias_ptr, residual_ptr, out_ptr, k_pages_ptr,
        v_pages_ptr, slot_mapping_ptr, M, N, HAS_BIAS, GELU, HAS_RESIDUAL, QKV, HEADS, HEAD_SIZE,
        PAGE_SIZE,
    )  # fmt: skip
