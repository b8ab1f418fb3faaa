"""Attention of one new token to the pages of its sequence, and of many queries at once.

Schedules:

* `decode_kernel`: a program takes one head of one sequence and SPLIT of its keys. It multiplies and
  reduces (a padded tensor-core product would waste 15 rows of 16) with a running softmax, and
  stores a part: maximum, sum and weighted values. The program that arrives last at a counter
  combines the parts in one order, so the result does not depend on which program that is. SPLIT
  is fixed, so the result does not depend on the batch either. Where a split is one block in one
  page, its page is asked for with the length: two trips to memory bring keys and values.
* `flash_kernel`: a program takes BLOCK_Q queries of one head and goes through their keys in blocks
  with a running softmax (Dao et al. 2022). Keys and values come from pages, with a causal mask, or
  from plain tensors, where every frame sees every frame.

The softmax is in float32 and uses powers of two: the scale includes log2(e).
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
    ceil_div,
    dot_precision,
    pdl_option,
)
from bark_fast.kernels.triton.schedules import DecodeAttentionLaunch, FlashLaunch, choose

LOG2_E = 1.4426950408889634
PARTS: tl.constexpr = tl.constexpr(16)  # combined at a time: all of bark's 1 024 keys


@triton.jit
def decode_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    tables_ptr,
    seq_lens_ptr,
    out_ptr,
    part_ptr,
    part_stats_ptr,
    arrived_ptr,
    max_pages,
    scale,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        # Only the launch itself is independent of the kernel before.
        gdc_launch_dependents()
        gdc_wait()
    b, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, HEAD_SIZE)
    row = (b * HEADS + head).to(tl.int64)
    table = tables_ptr + b.to(tl.int64) * max_pages
    BLOCKS: tl.constexpr = SPLIT // BLOCK_KV
    IN_ONE_PAGE: tl.constexpr = PAGE_SIZE % BLOCK_KV == 0
    length = tl.load(seq_lens_ptr + b).to(tl.int32)
    if BLOCKS == 1 and IN_ONE_PAGE:
        # Asked for together with the length.
        only_page = tl.load(
            table + split * SPLIT // PAGE_SIZE, mask=split * SPLIT < max_pages * PAGE_SIZE, other=0
        )
    q = tl.load(q_ptr + row * HEAD_SIZE + d).to(tl.float32) * scale
    # At most as many as were launched: a wrong max_length must not leave the counter waiting.
    max_splits = tl.num_programs(2)
    n_splits = tl.minimum(tl.maximum(tl.cdiv(length, SPLIT), 1), max_splits)
    if split >= n_splits:
        return
    # A finite start keeps the first correction from being inf - inf.
    best = -1.0e30
    total = 0.0
    acc = tl.zeros((HEAD_SIZE,), tl.float32)
    # A loop without a matrix product is pipelined only if num_stages is given here.
    for block in tl.range(0, BLOCKS, num_stages=STAGES):
        start = split * SPLIT + block * BLOCK_KV
        i = tl.arange(0, BLOCK_KV)
        inside = start + i < length
        if IN_ONE_PAGE:
            if BLOCKS == 1:
                page = only_page
            else:
                page = tl.load(table + start // PAGE_SIZE, mask=start < length, other=0)
            offset = start % PAGE_SIZE + i
        else:
            page = tl.load(table + (start + i) // PAGE_SIZE, mask=inside, other=0)
            offset = (start + i) % PAGE_SIZE
        place = ((page.to(tl.int64) * HEADS + head) * PAGE_SIZE + offset) * HEAD_SIZE
        k = tl.load(k_pages_ptr + place[:, None] + d[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(v_pages_ptr + place[:, None] + d[None, :], mask=inside[:, None], other=0.0)
        scores = tl.where(inside, tl.sum(q[None, :] * k.to(tl.float32), axis=1), -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=0))
        p = tl.exp2(scores - new_best)
        correction = tl.exp2(best - new_best)
        total = total * correction + tl.sum(p, axis=0)
        acc = acc * correction + tl.sum(p[:, None] * v.to(tl.float32), axis=0)
        best = new_best

    if n_splits == 1:
        # An empty row of the batch has no keys; its output is zero.
        y = acc / tl.where(total > 0.0, total, 1.0)
        tl.store(out_ptr + row * HEAD_SIZE + d, y.to(out_ptr.dtype.element_ty))
    else:
        part = row * max_splits + split
        tl.store(part_ptr + part * HEAD_SIZE + d, acc)
        tl.store(part_stats_ptr + part * 2, best)
        tl.store(part_stats_ptr + part * 2 + 1, total)
        # All of this program's stores come before its arrival, and its arrival before its loads.
        tl.debug_barrier()
        before = tl.atomic_add(arrived_ptr + row, 1, sem="acq_rel")
        tl.debug_barrier()
        if before == n_splits - 1:
            best = -1.0e30
            total = 0.0
            acc = tl.zeros((HEAD_SIZE,), tl.float32)
            # So many at a time, whatever was launched, so that the sum has one order.
            for first in range(0, n_splits, PARTS):
                s = first + tl.arange(0, PARTS)
                parts = row * max_splits + s
                there = s < n_splits
                part_best = tl.load(
                    part_stats_ptr + parts * 2, mask=there, other=-1.0e30, cache_modifier=".cg"
                )
                part_total = tl.load(
                    part_stats_ptr + parts * 2 + 1, mask=there, other=0.0, cache_modifier=".cg"
                )
                part_acc = tl.load(
                    part_ptr + parts[:, None] * HEAD_SIZE + d[None, :],
                    mask=there[:, None],
                    other=0.0,
                    cache_modifier=".cg",
                )
                new_best = tl.maximum(best, tl.max(part_best, axis=0))
                correction, weights = tl.exp2(best - new_best), tl.exp2(part_best - new_best)
                total = total * correction + tl.sum(part_total * weights, axis=0)
                acc = acc * correction + tl.sum(part_acc * weights[:, None], axis=0)
                best = new_best
            tl.store(out_ptr + row * HEAD_SIZE + d, (acc / total).to(out_ptr.dtype.element_ty))
            # The counter is ready for the next launch.
            tl.store(arrived_ptr + row, 0)


# The width of the page table varies with the batch, and is read as a number alone.
@triton.jit(do_not_specialize=["max_pages"])
def flash_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    tables_ptr,
    cu_seqlens_q_ptr,
    seq_lens_ptr,
    max_pages,
    scale,
    q_stride,
    kv_stride,
    T,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PAGED:
        first = tl.load(cu_seqlens_q_ptr + b).to(tl.int64)
        n = (tl.load(cu_seqlens_q_ptr + b + 1) - first).to(tl.int32)
        length = tl.load(seq_lens_ptr + b).to(tl.int32)
    else:
        first = b.to(tl.int64) * T
        n = T
        length = T
    if block * BLOCK_Q >= n:
        return
    i = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, HEAD_SIZE)
    # Within a sequence 32 bits are enough for the distance from its first row.
    q_ptr += first * q_stride + head * HEAD_SIZE
    q = tl.load(q_ptr + i[:, None] * q_stride + d[None, :], mask=(i < n)[:, None], other=0.0)
    best = tl.full((BLOCK_Q,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, HEAD_SIZE), tl.float32)
    # The queries are the last n of the sequence's tokens.
    position = length - n + i
    stop = length
    if PAGED:
        tables_ptr += b.to(tl.int64) * max_pages
        stop = tl.minimum(length, length - n + (block + 1) * BLOCK_Q)
    else:
        k_ptr += first * kv_stride + head * HEAD_SIZE
        v_ptr += first * kv_stride + head * HEAD_SIZE
    for start in range(0, stop, BLOCK_KV):
        at = start + tl.arange(0, BLOCK_KV)
        inside = at < length
        if PAGED:
            if PAGE_SIZE % BLOCK_KV == 0:  # the block lies in one page
                page = tl.load(tables_ptr + start // PAGE_SIZE)
            else:
                page = tl.load(tables_ptr + at // PAGE_SIZE, mask=inside, other=0)
            place = ((page.to(tl.int64) * HEADS + head) * PAGE_SIZE + at % PAGE_SIZE) * HEAD_SIZE
        else:
            place = at * kv_stride
        k = tl.load(k_ptr + place[None, :] + d[:, None], mask=inside[None, :], other=0.0)
        v = tl.load(v_ptr + place[:, None] + d[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision=PRECISION, out_dtype=tl.float32)
        seen = inside[None, :]
        if PAGED:
            seen = seen & (at[None, :] <= position[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1) * scale)
        p = tl.exp2(scores * scale - new_best[:, None])
        correction = tl.exp2(best - new_best)
        total = total * correction + tl.sum(p, axis=1)
        acc = acc * correction[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        best = new_best
    # A sequence without keys gives zeros.
    y = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    out_ptr += (first * HEADS + head) * HEAD_SIZE
    tl.store(
        out_ptr + i[:, None] * (HEADS * HEAD_SIZE) + d[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=(i < n)[:, None],
    )


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    block_tables: Tensor,
    seq_lens: Tensor,
    max_queries: int,
    max_length: int,
    cu_seqlens_q: Tensor | None = None,
    decode: bool = False,
    workspace: Tensor | None = None,
    pdl: bool,
) -> Tensor:
    """See `Backend.paged_attention`."""
    q = q.contiguous()
    heads, page_size, size = k_pages.shape[1:]
    batch = len(seq_lens)
    out = torch.empty_like(q)
    scale = LOG2_E * size**-0.5
    if decode:
        launch = choose(DecodeAttentionLaunch, (size,), q, rows=batch)
        splits = max(1, ceil_div(max_length, launch.split))
        if workspace is None:
            workspace = decode_workspace(batch, heads, device=q.device)
        assert workspace.numel() >= batch * heads, "the workspace is for a smaller batch"
        pdl = pdl and can_launch_dependent(q)
        parts = torch.empty(batch * heads * splits * size, dtype=torch.float32, device=q.device)
        stats = torch.empty(batch * heads * splits * 2, dtype=torch.float32, device=q.device)
        decode_kernel[(batch, heads, splits)](
            q, k_pages, v_pages, block_tables, seq_lens, out, parts, stats, workspace,
            block_tables.shape[1], scale,
            HEADS=heads, HEAD_SIZE=size, PAGE_SIZE=page_size, SPLIT=launch.split,
            BLOCK_KV=launch.block_kv, STAGES=launch.num_stages, PDL=pdl,
            num_warps=launch.num_warps, **pdl_option(pdl), **ALWAYS,
        )  # fmt: skip
        return out
    assert cu_seqlens_q is not None, "only a decode step needs no cu_seqlens_q"
    flash = choose(FlashLaunch, (size,), q)
    flash_kernel[(ceil_div(max_queries, flash.block_q), heads, batch)](
        q, k_pages, v_pages, out, block_tables, cu_seqlens_q, seq_lens,
        block_tables.shape[1], scale, heads * size, 0, 0,
        HEADS=heads, HEAD_SIZE=size, PAGE_SIZE=page_size, PAGED=True, BLOCK_Q=flash.block_q,
        BLOCK_KV=flash.block_kv, PRECISION=dot_precision(q.dtype),
        num_warps=flash.num_warps, num_stages=flash.num_stages, **ALWAYS,
    )  # fmt: skip
    return out


def bidirectional_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `Backend.bidirectional_attention`."""
    batch, length, heads, size = q.shape
    for tensor in (q, k, v):
        # Slices of one projection: heads and their elements next to each other, any row stride.
        assert tensor.stride()[2:] == (size, 1), "the last two dimensions must be contiguous"
        assert tensor.stride(0) == length * tensor.stride(1), "batches must follow one another"
    assert k.stride() == v.stride(), "keys and values must be laid out alike"
    out = torch.empty(batch, length, heads, size, dtype=q.dtype, device=q.device)
    launch = choose(FlashLaunch, (size,), q)
    flash_kernel[(ceil_div(length, launch.block_q), heads, batch)](
        q, k, v, out, q, q, q, 0, LOG2_E * size**-0.5, q.stride(1), k.stride(1), length,
        HEADS=heads, HEAD_SIZE=size, PAGE_SIZE=1, PAGED=False, BLOCK_Q=launch.block_q,
        BLOCK_KV=launch.block_kv, PRECISION=dot_precision(q.dtype),
        num_warps=launch.num_warps, num_stages=launch.num_stages, **ALWAYS,
    )  # fmt: skip
    return out


def decode_workspace(batch: int, heads: int, *, device: torch.device) -> Tensor:
    """Return the decode schedules' arrival counters, int32 zeros; every launch leaves them zero.

    There are enough for the heads of `batch` sequences, and for products of 16 384 columns.
    """
    return torch.zeros(max(batch * heads, 1024), dtype=torch.int32, device=device)
