"""Products of many rows with a weight matrix on sm_90: prefill and the fine stage.

Schedule: as many programs as the device has multiprocessors, each of which goes from tile to tile
of x @ W^T. Tiles of x and W come by descriptors (TMA): one instruction a tile, which no thread has
to compute addresses for. The loops over tiles and over K are one to the compiler, so the next
tile's first columns are on their way while the last tile is stored.

Neighbouring programs go along the columns of one row of tiles: x is read from memory once, and W,
of 8 MiB at most, stays in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bark_fast.kernels.triton.epilogue import epilogue


# One kernel for every number of rows, as in `linear_tile`.
@triton.jit(do_not_specialize=["M"])
def persistent_kernel(
    x_desc,
    weight_desc,
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
    COLUMNS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N  # of tiles
    n_tiles = tl.cdiv(M, BLOCK_M) * COLUMNS
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), flatten=True):
        first_m, first_n = tile // COLUMNS * BLOCK_M, tile % COLUMNS * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            # What is outside of x or W is zero.
            x = x_desc.load([first_m, k])
            w = weight_desc.load([first_n, k])
            acc = tl.dot(x, w.T, acc, input_precision=PRECISION)
        m = (first_m + tl.arange(0, BLOCK_M)).to(tl.int64)
        n = first_n + tl.arange(0, BLOCK_N)
        epilogue(
            acc, m[:, None], n[None, :], (m < M)[:, None] & (n < N)[None, :], bias_ptr,
            residual_ptr, out_ptr, k_pages_ptr, v_pages_ptr, slot_mapping_ptr, M, N, HAS_BIAS, GELU,
            HAS_RESIDUAL, QKV, HEADS, HEAD_SIZE, PAGE_SIZE,
        )  # fmt: skip
