"""Sampling: from logits to the next token in one launch, with everything that the next step reads.

Schedule: one program for each row, which holds all its logits in registers. Top-k and top-p need
an order, not a sort: the bits of a float, made monotone, are a 32-bit key, and a binary search over
keys finds the k-th largest (by counting) or the smallest whose mass is enough (by summing). Each
takes 32 rounds, or none if the row does not use it. The noise is Philox-4x32-10 in uint32, with
four ids a block.

A row's result depends on that row alone: the number of columns fixes every reduction's order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bark_fast.kernels.ops import noise_positions
from bark_fast.kernels.state import DecodeState, SamplingMetadata, TokenSpace
from bark_fast.kernels.triton.launch import (
    ALWAYS,
    can_launch_dependent,
    pdl_option,
    power_of_two,
)


@triton.jit
def philox_block(c0, c1, c2, seed_low, seed_high):
    """Return four uint32 words of Philox-4x32-10 (Salmon et al. 2011), counter (c0, c1, c2, 0)."""
    c3 = tl.zeros_like(c0)
    k0, k1 = seed_low, seed_high
    m0 = tl.full((), 0xD2511F53, tl.uint32)
    m1 = tl.full((), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        n0 = tl.umulhi(c2, m1) ^ c1 ^ k0
        n2 = tl.umulhi(c0, m0) ^ c3 ^ k1
        c1, c3 = c2 * m1, c0 * m0
        c0, c2 = n0, n2
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def random_words(seed, position, stage, first, COUNT: tl.constexpr):
    """Return a uint32 for each id first .. first + COUNT - 1: word id % 4 of block id // 4."""
    blocks = (first // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    low = tl.zeros_like(blocks) + (seed & 0xFFFFFFFF).to(tl.uint32)
    high = tl.zeros_like(blocks) + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    at = tl.zeros_like(blocks) + position.to(tl.uint32)
    which = tl.zeros_like(blocks) + stage
    w0, w1, w2, w3 = philox_block(blocks, at, which.to(tl.uint32), low, high)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (COUNT,))


@triton.jit
def order_key(x):
    """Return a uint32 that is ordered as the float32 x is."""
    bits = x.to(tl.uint32, bitcast=True)
    return bits ^ tl.where(bits >> 31 != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)


@triton.jit
def random_words_kernel(seeds_ptr, positions_ptr, out_ptr, stage, V, BLOCK_V: tl.constexpr):
    row = tl.program_id(0)
    words = random_words(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), stage, 0, BLOCK_V)
    v = tl.arange(0, BLOCK_V)
    tl.store(out_ptr + row.to(tl.int64) * V + v, words.to(tl.int64), mask=v < V)


@triton.jit
def sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_eos_p_ptr,
    min_new_tokens_ptr,
    suno_rules_ptr,
    seeds_ptr,
    positions_ptr,
    out_ptr,
    token_ptr,
    model_position_ptr,
    seq_len_ptr,
    slot_mapping_ptr,
    tables_ptr,
    limit_ptr,
    finished_ptr,
    history_ptr,
    stage,
    V,
    first_id,
    range_size,
    n_ranges,
    max_pages,
    history_width,
    BLOCK_V: tl.constexpr,
    CHUNK_V: tl.constexpr,
    HAS_EOS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_STATE: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    if HAS_STATE:
        if tl.load(finished_ptr + row) != 0:
            tl.store(out_ptr + row, tl.full((), 0, tl.int64))
            return
        # All threads read it, and one writes it at the end: the reductions between are barriers.
        next_position = tl.load(model_position_ptr + row) + 1
    v = tl.arange(0, BLOCK_V)
    position = tl.load(positions_ptr + row)
    turn = position % n_ranges
    first = turn * range_size
    suno = tl.load(suno_rules_ptr + row) != 0
    open_ended = (turn == n_ranges - 1) & ((suno == 0) | (n_ranges == 1))
    last = tl.where(open_ended, V, first + range_size)
    if HAS_EOS:
        last = tl.where(position < tl.load(min_new_tokens_ptr + row), tl.minimum(last, V - 1), last)
    logits = tl.load(
        logits_ptr + row * V + v, mask=(v >= first) & (v < last), other=-float("inf")
    ).to(tl.float32)
    # A maximum over floats passes over NaN, so NaN counts as +infinity here.
    best_logit = tl.max(tl.where(logits != logits, float("inf"), logits), axis=0)
    failed = (best_logit == float("inf")) | (best_logit == -float("inf"))
    end_now = row < 0
    if HAS_EOS:
        enough = tl.load(min_eos_p_ptr + row)
        weights = tl.exp(logits - best_logit)
        p_end = tl.sum(tl.where(v == V - 1, weights, 0.0), axis=0) / tl.sum(weights, axis=0)
        end_now = tl.where(suno, enough <= 0.0, (enough > 0.0) & (p_end > enough))
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        chosen = tl.argmax(logits, axis=0, tie_break_left=True)
    else:
        # Top-k and top-p reduce to one threshold: the least key to keep.
        # By suno's rules the temperature divides what they have left, and top-p sees no top-k.
        filter_temperature = tl.where(suno, 1.0, temperature)
        scores = logits / filter_temperature
        key = order_key(scores)
        high_bit = tl.full((), 0x80000000, tl.uint32)
        keep = tl.full((), 0, tl.uint32)
        top_k = tl.load(top_k_ptr + row)
        if (top_k > 0) & (top_k < last - first):
            # The largest key that k of them reach is the k-th largest.
            for bit in range(32):
                candidate = keep | (high_bit >> bit)
                count = tl.sum((key >= candidate).to(tl.int32), axis=0)
                keep = tl.where(count >= top_k, candidate, keep)
        top_p = tl.load(top_p_ptr + row)
        if top_p < 1.0:
            best = tl.max(scores, axis=0)
            weights = tl.where((key >= keep) | suno, tl.exp(scores - best), 0.0)
            limit = (1.0 - top_p) * tl.sum(weights, axis=0)
            # The largest key below which the mass is at most 1 - p: lower keys are dropped.
            threshold = tl.full((), 0, tl.uint32)
            for bit in range(32):
                candidate = threshold | (high_bit >> bit)
                below = tl.sum(tl.where(key < candidate, weights, 0.0), axis=0)
                drop = (below < limit) | ((below == limit) & (suno == 0))
                threshold = tl.where(drop, candidate, threshold)
            keep = tl.maximum(keep, tl.minimum(threshold, tl.max(key, axis=0)))
        best = tl.max(logits, axis=0) / temperature
        all_shares = 0.0
        end_share = 0.0
        seed = tl.load(seeds_ptr + row)
        best_noisy = -float("inf")
        chosen = 0
        # In chunks, read again: all at once would not leave enough registers for the noise. Chunks
        # that have no possible column need none.
        begin = (first // CHUNK_V * CHUNK_V).to(tl.int32)
        for start in range(begin, last.to(tl.int32), CHUNK_V):
            u = start + tl.arange(0, CHUNK_V)
            part = tl.load(
                logits_ptr + row * V + u, mask=(u >= first) & (u < last), other=-float("inf")
            ).to(tl.float32)
            kept = order_key(part / filter_temperature) >= keep
            part = part / temperature
            words = random_words(seed, position, stage, start, CHUNK_V)
            uniform = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
            noisy = tl.where(kept, part - tl.log(-tl.log(uniform)), -float("inf"))
            if HAS_EOS:
                if suno:
                    shares = tl.where(kept, tl.exp(part - best), 0.0)
                    all_shares += tl.sum(shares, axis=0)
                    end_share += tl.sum(tl.where(u == V - 1, shares, 0.0), axis=0)
            largest, at = tl.max(noisy, axis=0, return_indices=True)
            chosen = tl.where(largest > best_noisy, start + at, chosen)
            best_noisy = tl.maximum(best_noisy, largest)
        if HAS_EOS:
            if suno:
                end_now = end_share / all_shares >= enough
    going_on = chosen >= 0
    if HAS_EOS:
        chosen = tl.where(end_now, V - 1, chosen)
        going_on = (chosen != V - 1) | failed
    chosen = tl.where(failed, -1, chosen)  # NO_TOKEN
    tl.store(out_ptr + row, chosen.to(tl.int64))
    if HAS_STATE:
        token = tl.where(failed, -1, chosen + first_id).to(tl.int64)
        more = going_on & (failed == 0) & (position + 1 < tl.load(limit_ptr + row))
        place = position % history_width
        tl.store(history_ptr + row * history_width + place, token, mask=going_on)
        tl.store(positions_ptr + row, position + 1, mask=going_on)
        # A row that has ended becomes empty: its pages may be another's by the next step.
        tl.store(finished_ptr + row, 1, mask=more == 0)
        tl.store(seq_len_ptr + row, tl.full((), 0, tl.int64), mask=more == 0)
        tl.store(slot_mapping_ptr + row, tl.full((), -1, tl.int64), mask=more == 0)
        page = tl.load(
            tables_ptr + row * max_pages + next_position // PAGE_SIZE, mask=more, other=0
        )
        slot = page * PAGE_SIZE + next_position % PAGE_SIZE
        tl.store(token_ptr + row, token, mask=more)
        tl.store(model_position_ptr + row, next_position, mask=more)
        tl.store(seq_len_ptr + row, next_position + 1, mask=more)
        tl.store(slot_mapping_ptr + row, slot, mask=more)


def sample(
    logits: Tensor,
    metadata: SamplingMetadata,
    space: TokenSpace,
    *,
    positions: Tensor | None = None,
    state: DecodeState | None = None,
    pdl: bool,
) -> Tensor:
    """See `Backend.sample`."""
    logits = logits.contiguous()
    rows, columns = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    # A launch needs a valid pointer even for an argument that it does not use.
    fields = (
        (out,) * 8
        if state is None
        else (
            state.token_ids, state.positions, state.seq_lens, state.slot_mapping,
            state.block_tables, state.limits, state.finished, state.history,
        )
    )  # fmt: skip
    block = max(16, power_of_two(columns))
    # 16 logits a thread, and of noise one block at a time. 32 warps would have 64 registers a
    # thread, which are too few for some assemblers, and the multiprocessor no more to do at a time.
    num_warps = min(16, max(1, block // 512))
    pdl = pdl and can_launch_dependent(logits)
    sample_kernel[(rows,)](
        logits, metadata.temperature.contiguous(), metadata.top_k.contiguous(),
        metadata.top_p.contiguous(), metadata.min_eos_p, metadata.min_new_tokens,
        metadata.suno_rules.contiguous(), metadata.seeds.contiguous(),
        noise_positions(positions, state), out, *fields,
        space.stage, columns, space.first_id, space.range_size, space.n_ranges,
        0 if state is None else state.block_tables.shape[1],
        0 if state is None else state.history.shape[1],
        BLOCK_V=block, CHUNK_V=min(block, 4 * 32 * num_warps), HAS_EOS=space.has_end,
        PAGE_SIZE=1 if state is None else state.page_size, HAS_STATE=state is not None,
        num_warps=num_warps, PDL=pdl, **pdl_option(pdl), **ALWAYS,
    )  # fmt: skip
    return out


def random_words_of(seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
    """See `Backend.random_words`; it exists to be compared with the reference."""
    out = torch.empty(len(seeds), n_ids, dtype=torch.int64, device=seeds.device)
    random_words_kernel[(len(seeds),)](
        seeds, positions, out, stage, n_ids, BLOCK_V=max(16, power_of_two(n_ids)), **ALWAYS
    )
    return out
