"""Products of a few rows with a weight matrix, which are bound by reading it.

Schedule: a program takes BLOCK_N rows of W and BLOCK_K columns, usually all, and requests them at
once, so that nothing waits in a loop. It keeps them in registers and goes through the rows of x, 8
at a time, so W is read once however many rows there are. The product is W @ x^T: 8 rows of x are
the short side of the tensor-core instruction (mma.m16n8k16), on which every row is on its own.

Each warp takes one slice of the columns, as one batch of a batched product, and the slices are
added in a fixed order. Where there are more columns than BLOCK_K (fc2), programs take a part each,
and the one that arrives last at a counter adds the parts in their order.

The operands go from memory to the instruction without a detour through shared memory. In a chunk of
32 columns a thread loads 16 bytes of a row, where the instruction wants 4 of every second place;
but a sum does not mind in which order it takes its columns, if both operands agree.

The layer norm is folded in: with W' = W * gamma,

    norm(x) @ W^T = rstd * (x @ W'^T - mean * sum(W')) + W @ beta

so that x goes into the product as it is, and mean and variance are sums that the tensor cores add
beside it: of x by a row of ones, of squares as the diagonal of x @ x^T. (The difference of squares
loses (mean / deviation)^2 of float32's precision; half precision loses mean / deviation of its own.
Where a program does not have whole rows another launch computes the statistics. So it does in
float32, whose x has its mean subtracted before the product, for there each bit counts.)

Programmatic dependent launch (PDL): what does not depend on the kernel before is requested, and W'
made, before `gdc_wait`. `launch` says what the wait promises.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bark_fast.kernels.triton.epilogue import gelu, store_qkv


@triton.jit
def tile_places(SLICES: tl.constexpr, CHUNKS: tl.constexpr, N_ROWS: tl.constexpr):
    """Return row and column of a tile's elements, which broadcast to its shape as it is loaded:
    [CHUNKS, N_ROWS / 8, SLICES, 8, 32], so that lanes have 8 rows and warps the slices."""
    chunk = tl.arange(0, CHUNKS)[:, None, None, None, None]
    eight = tl.arange(0, N_ROWS // 8)[None, :, None, None, None]
    slice = tl.arange(0, SLICES)[None, None, :, None, None]
    row = tl.arange(0, 8)[None, None, None, :, None]
    column = tl.arange(0, 32)[None, None, None, None, :]
    return eight * 8 + row, slice * (CHUNKS * 32) + chunk * 32 + column


@triton.jit
def as_operand(tile, SLICES: tl.constexpr, CHUNKS: tl.constexpr, N_ROWS: tl.constexpr):
    """Return a tile as it is loaded as an operand [SLICES, N_ROWS, CHUNKS * 32].

    Its columns change places so that no element changes its thread: of a thread's 8 the first two
    become its own of the instruction's first 8 columns, the next two of the next, and so on.
    """
    parts = tl.reshape(tile, (CHUNKS, N_ROWS // 8, SLICES, 8, 4, 2, 2, 2))
    return tl.reshape(tl.permute(parts, (2, 1, 3, 0, 5, 6, 4, 7)), (SLICES, N_ROWS, CHUNKS * 32))


@triton.jit
def product(w, x):
    """Return w [SLICES, R, k] @ x [SLICES, 8, k]^T, added over the slices in a fixed order."""
    parts = tl.dot(w, tl.permute(x, (0, 2, 1)), input_precision="ieee", out_dtype=tl.float32)
    return tl.sum(parts, axis=0)


@triton.jit
def load_x(
    x_ptr, tile, M, start, K: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Return 8 rows of x as they are loaded, from column `start` on; zeros where there is none."""
    row, column = tile_places(SLICES, CHUNKS, 8)
    mask = tile * 8 + row < M
    if K % BLOCK_K:
        mask = mask & (start + column < K)
    at = x_ptr + (tl.full((), 8 * K, tl.int64) * tile + start)
    return tl.load(at + (row * K + column), mask=mask, other=0.0)


@triton.jit
def statistics(x, eps, K: tl.constexpr, SLICES: tl.constexpr, CHUNKS: tl.constexpr):
    """Return mean and reciprocal standard deviation [8] of the rows of x as they are loaded."""
    # The rows of x and rows of ones, times x^T: squares on the diagonal, and sums.
    eight = tl.arange(0, 2)[None, :, None, None, None]
    with_ones = tl.where(eight == 0, x, tl.full((1, 1, 1, 1, 1), 1.0, x.dtype))
    sums = product(as_operand(with_ones, SLICES, CHUNKS, 16), as_operand(x, SLICES, CHUNKS, 8))
    row, column = tl.arange(0, 16)[:, None], tl.arange(0, 8)[None, :]
    mean = tl.sum(tl.where(row == 8, sums, 0.0), axis=0) / K
    square = tl.sum(tl.where(row == column, sums, 0.0), axis=0) / K
    return mean, 1.0 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)


@triton.jit
def load_ends(
    residual_ptr, slot_mapping_ptr, tile, m, n, inside, M, N: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, QKV: tl.constexpr,
):  # fmt: skip
    """Return the residual of 8 rows and their slots; zeros where the product has none."""
    residual = tl.zeros((1, 1), tl.float32)
    slot = tl.zeros((1, 1), tl.int64)
    if HAS_RESIDUAL:
        at = residual_ptr + tl.full((), 8 * N, tl.int64) * tile
        residual = tl.load(at + (m * N + n), mask=inside, other=0.0).to(tl.float32)
    if QKV:
        slot = tl.load(slot_mapping_ptr + tile * 8 + m, mask=m < M - tile * 8, other=-1)
    return residual, slot


@triton.jit
def finish(
    y, residual, slot, tile, m, n, inside, out_ptr, k_pages_ptr, v_pages_ptr, N: tl.constexpr,
    GELU: tl.constexpr, QKV: tl.constexpr, HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """Apply GELU and residual to y [BLOCK_N, 8], and store it in x's type."""
    if GELU:
        y = gelu(y)
    y = (y + residual).to(out_ptr.dtype.element_ty)
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE if QKV else N
    out = out_ptr + tl.full((), 8 * WIDTH, tl.int64) * tile
    if QKV:
        store_qkv(y, m, n, inside, slot, out, k_pages_ptr, v_pages_ptr, HEADS, HEAD_SIZE, PAGE_SIZE)
    else:
        tl.store(out + (m * N + n), y, mask=inside)


# One kernel for up to 8 rows and one for more.
@triton.jit(do_not_specialize=["M"])
def decode_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    row_stats_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    residual_ptr,
    out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slot_mapping_ptr,
    part_ptr,
    arrived_ptr,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    ONE_TILE: tl.constexpr,
    OWN_STATS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    QKV: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    CHUNKS: tl.constexpr = BLOCK_K // SLICES // 32
    SPLITS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    block, split = tl.program_id(0), tl.program_id(1)
    start = split * BLOCK_K
    row, column = tile_places(SLICES, CHUNKS, BLOCK_N)
    mask = row >= 0
    if N % BLOCK_N:
        mask = mask & (block * BLOCK_N + row < N)
    if K % BLOCK_K:
        mask = mask & (start + column < K)
    at = weight_ptr + (block.to(tl.int64) * BLOCK_N * K + start)
    w = tl.load(at + (row * K + column), mask=mask, other=0.0)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    shift = tl.zeros((BLOCK_N, 1), tl.float32)
    if HAS_BIAS:
        shift += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if HAS_NORM:
        # As wide as a tile of x, so that each thread has what it needs.
        same, k = tile_places(SLICES, CHUNKS, 8)
        k = start + k + 0 * same
        if HAS_NORM_BIAS:
            beta = tl.load(norm_bias_ptr + k, mask=k < K, other=0.0)
            # All 8 columns are alike.
            of_norm = product(
                as_operand(w, SLICES, CHUNKS, BLOCK_N), as_operand(beta, SLICES, CHUNKS, 8)
            )
        gamma = tl.load(norm_weight_ptr + k, mask=k < K, other=0.0)
        w *= gamma  # rounded once: half precision has a product of its own
        if w.dtype != tl.float32:
            ones = tl.full((SLICES, 8, CHUNKS * 32), 1.0, w.dtype)
            w_sums = product(as_operand(w, SLICES, CHUNKS, BLOCK_N), ones)
    w = as_operand(w, SLICES, CHUNKS, BLOCK_N)

    if PDL:
        gdc_wait()
    # Programs that share these rows of W take every so many-th 8 rows of x.
    first = tl.full((), 0, tl.int32) if ONE_TILE else tl.program_id(2)
    step = 1 if ONE_TILE else tl.num_programs(2)
    stop = 1 if ONE_TILE else tl.cdiv(M, 8)
    m = tl.arange(0, 8)[None, :]
    x = load_x(x_ptr, first, M, start, K, BLOCK_K, SLICES, CHUNKS)
    for tile in range(first, stop, step):
        inside = (n < N) & (m < M - tile * 8)
        # All that this tile needs, and the next tile of x, is on its way before anything waits.
        if not ONE_TILE:
            following = load_x(x_ptr, tile + step, M, start, K, BLOCK_K, SLICES, CHUNKS)
        if SPLITS == 1:
            residual, slot = load_ends(
                residual_ptr, slot_mapping_ptr, tile, m, n, inside, M, N, HAS_RESIDUAL, QKV
            )
        if HAS_NORM and not OWN_STATS:
            at = row_stats_ptr + (tile * 8 + m) * 2
            mean = tl.load(at, mask=m < M - tile * 8, other=0.0)
            rstd = tl.load(at + 1, mask=m < M - tile * 8, other=0.0)
            if x.dtype == tl.float32:
                x -= tl.reshape(mean, (1, 1, 1, 8, 1))
        y = product(w, as_operand(x, SLICES, CHUNKS, 8))
        if HAS_NORM:
            if OWN_STATS:
                mean, rstd = statistics(x, eps, K, SLICES, CHUNKS)
                mean, rstd = mean[None, :], rstd[None, :]
            if x.dtype == tl.float32:
                y *= rstd
            else:
                y = (y - w_sums * mean) * rstd
            if HAS_NORM_BIAS:
                y += of_norm
        if SPLITS == 1:
            finish(
                y + shift, residual, slot, tile, m, n, inside, out_ptr, k_pages_ptr, v_pages_ptr, N,
                GELU, QKV, HEADS, HEAD_SIZE, PAGE_SIZE,
            )  # fmt: skip
        else:
            part = part_ptr + (split.to(tl.int64) * M + tile * 8) * N
            tl.store(part + (m * N + n), y, mask=inside)
        if not ONE_TILE:
            x = following

    if SPLITS > 1:
        counter = arrived_ptr + block * step + first
        # All of this program's stores come before its arrival, and its arrival before its loads.
        tl.debug_barrier()
        before = tl.atomic_add(counter, 1, sem="acq_rel")
        tl.debug_barrier()
        if before == SPLITS - 1:
            for tile in range(first, stop, step):
                inside = (n < N) & (m < M - tile * 8)
                residual, slot = load_ends(
                    residual_ptr, slot_mapping_ptr, tile, m, n, inside, M, N, HAS_RESIDUAL, QKV
                )
                # One after another, so that the sum has the order of the columns.
                y = shift
                for s in tl.static_range(SPLITS):
                    part = part_ptr + (tl.full((), s, tl.int64) * M + tile * 8) * N
                    y += tl.load(part + (m * N + n), mask=inside, other=0.0, cache_modifier=".cg")
                finish(
                    y, residual, slot, tile, m, n, inside, out_ptr, k_pages_ptr, v_pages_ptr, N,
                    GELU, QKV, HEADS, HEAD_SIZE, PAGE_SIZE,
                )  # fmt: skip
            # The counter is ready for the next launch.
            tl.store(counter, 0)


def counters(workspace: Tensor | None, grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return a counter, zero, for each block of W's rows and each of those that share it."""
    if workspace is None:
        return torch.zeros(grid[0] * grid[2], dtype=torch.int32, device=device)
    assert workspace.numel() >= grid[0] * grid[2], "the workspace is for narrower products"
    return workspace
