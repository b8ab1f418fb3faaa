"""What follows a product with a weight matrix, in every schedule: bias, GELU, residual, pages.

Sums arrive in float32 and are rounded once, at the store.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """Return the exact GELU."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def epilogue(
    acc,
    m,
    n,
    mask,
    bias_ptr,
    residual_ptr,
    out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slot_mapping_ptr,
    M,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    QKV: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    """Apply bias, GELU and residual to acc and store it; its element (i, j) is row m, column n.

    m and n broadcast to acc's shape, which may be transposed. With QKV the columns are queries,
    keys and values: queries go to `out`, the others to their slots in the pages.
    """
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if GELU:
        acc = gelu(acc)
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + m * N + n, mask=mask, other=0.0).to(tl.float32)
    y = acc.to(out_ptr.dtype.element_ty)
    if QKV:
        slot = tl.load(slot_mapping_ptr + m, mask=m < M, other=-1)
        store_qkv(
            y, m, n, mask, slot, out_ptr, k_pages_ptr, v_pages_ptr, HEADS, HEAD_SIZE, PAGE_SIZE
        )
    else:
        tl.store(out_ptr + m * N + n, y, mask=mask)


@triton.jit
def store_qkv(
    y,
    m,
    n,
    mask,
    slot,
    out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    """Store queries to `out`, and keys and values to the rows' slots; a slot of -1 gets none."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    section = n // WIDTH
    column = n % WIDTH
    # [P, H, page_size, D]: the row's part of the address, and the column's part.
    row = ((slot // PAGE_SIZE) * (HEADS * PAGE_SIZE) + slot % PAGE_SIZE) * HEAD_SIZE
    place = row + ((column // HEAD_SIZE) * (PAGE_SIZE * HEAD_SIZE) + column % HEAD_SIZE)
    tl.store(out_ptr + m * WIDTH + column, y, mask=mask & (section == 0))
    tl.store(k_pages_ptr + place, y, mask=mask & (section == 1) & (slot >= 0))
    tl.store(v_pages_ptr + place, y, mask=mask & (section == 2) & (slot >= 0))
