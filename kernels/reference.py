"""Every operation in plain torch: the oracle of the faster implementations, and itself usable on
any device. What each takes and gives is said once, in `bark_fast.kernels`."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_fast.kernels.state import DecodeState

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x [N, K], weight [M, K] and bias [M] or None to x @ weight.T + bias."""


def embedding_sum(
    ids: Tensor, tables: Tensor, *, positions: Tensor, position_table: Tensor
) -> Tensor:
    """See `bark_fast.kernels.embedding_sum`."""
    total: Tensor | None = None
    for stream, table in zip(ids, tables, strict=True):
        rows = F.embedding(stream.clamp(min=0), table)
        rows = rows.masked_fill_((stream < 0)[:, None], 0)
        total = rows if total is None else total.add_(rows)
    assert total is not None, "ids has no stream"
    return total.add_(F.embedding(positions, position_table))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float) -> Tensor:
    """See `bark_fast.kernels.layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, Tensor | None] | None,
    gelu: bool,
    residual: Tensor | None,
    eps: float,
    product: Product = F.linear,
) -> Tensor:
    """See `bark_fast.kernels.fused_linear`."""
    if norm is not None:
        x = layer_norm(x, *norm, eps=eps)
    y = product(x, weight, bias)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else y.add_(residual)


def qkv_to_pages(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, Tensor | None],
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    eps: float,
    product: Product = F.linear,
) -> Tensor:
    """See `bark_fast.kernels.qkv_to_pages`."""
    qkv = fused_linear(
        x, weight, bias, norm=norm, gelu=False, residual=None, eps=eps, product=product
    )
    q, k, v = qkv.view(len(x), 3, *k_pages.shape[1::2]).unbind(1)
    write_pages(k, v, k_pages, v_pages, slots)
    return q.contiguous()


def write_pages(
    keys: Tensor, values: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor
) -> None:
    """Store keys and values [N, H, D] of N tokens in their places of the paged cache.

    Args:
        k_pages, v_pages: [P, H, page_size, D], written in place.
        slots: int64 [N], page * page_size + offset of each token.
    """
    page_size = k_pages.shape[2]
    if (slots < 0).any():  # rows without a place
        keys, values, slots = keys[slots >= 0], values[slots >= 0], slots[slots >= 0]
    pages, offsets = slots // page_size, slots % page_size
    k_pages[pages, :, offsets] = keys.to(k_pages.dtype)
    v_pages[pages, :, offsets] = values.to(v_pages.dtype)


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    block_tables: Tensor,
    query_starts: Tensor | None,
    kv_lengths: Tensor,
) -> Tensor:
    """See `bark_fast.kernels.paged_attention`."""
    page_size = k_pages.shape[2]
    out = torch.zeros_like(q)
    q = q.to(k_pages.dtype)
    lengths = kv_lengths.tolist()
    starts = range(len(q) + 1) if query_starts is None else query_starts.tolist()
    for b, (start, stop) in enumerate(pairwise(starts)):
        length, n = lengths[b], stop - start
        if n == 0 or length == 0:
            continue
        k = _gather_pages(k_pages, block_tables[b], length, page_size)
        v = _gather_pages(v_pages, block_tables[b], length, page_size)
        if 1 < n < length:
            # Extending a cache: torch's is_causal aligns the mask with the first key, ours is
            # aligned with the last.
            mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)
        else:
            mask = None
        heads = F.scaled_dot_product_attention(
            q[start:stop].transpose(0, 1)[None],
            k[None],
            v[None],
            attn_mask=mask,
            is_causal=n > 1 and mask is None,
        )
        out[start:stop] = heads[0].transpose(0, 1)
    return out


def _gather_pages(pages: Tensor, table: Tensor, length: int, page_size: int) -> Tensor:
    """The first `length` keys or values of one sequence, [H, length, D]; no copy from one page."""
    n_pages = -(-length // page_size)
    if n_pages == 1:
        return pages[table[0], :, :length]
    gathered = pages[table[:n_pages]].transpose(0, 1)
    return gathered.reshape(gathered.shape[0], -1, gathered.shape[-1])[:, :length]


def bidirectional_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `bark_fast.kernels.bidirectional_attention`."""
    heads = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return heads.transpose(1, 2)


def codebook_sum(codes: Tensor, tables: Tensor) -> Tensor:
    """See `bark_fast.kernels.codebook_sum`."""
    total = F.embedding(codes[:, 0], tables[0])
    for k in range(1, codes.shape[1]):
        total += F.embedding(codes[:, k], tables[k])
    return total.transpose(1, 2).contiguous()


# Sampling -------------------------------------------------------------------------------------


def process_logits(logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Temperature, then top-k, then top-p, in transformers' order and meaning.

    Ties are kept or dropped together, at the k-th place and at the edge of p, so that the result
    does not depend on the order of a sort. Top-p drops the least likely tokens as long as what is
    dropped has at most 1 - p, and always keeps one.

    Args:
        logits: float32 [B, V]; -inf for what cannot be sampled.
        temperature: float32 [B], above 0. top_k: int64 [B], 0 keeps all. top_p: float32 [B].

    Returns:
        float32 [B, V], -inf for what was dropped.
    """
    logits = logits / temperature[:, None]
    limited = (top_k > 0) & (top_k < logits.shape[1])
    if limited.any():
        k = torch.where(limited, top_k, 1)
        best = logits.topk(int(k.max()), dim=1).values
        kth = best.gather(1, k[:, None] - 1)
        logits = logits.masked_fill(limited[:, None] & (logits < kth), -math.inf)
    if (top_p < 1).any():
        ascending, order = logits.sort(dim=1)
        tail = ascending.softmax(dim=1).cumsum(dim=1)
        # Of equal logits, all have the mass up to the last of them.
        tail = tail.gather(1, torch.searchsorted(ascending, ascending, right=True) - 1)
        drop = tail <= (1 - top_p)[:, None]
        drop[:, -1] = False
        drop &= (top_p < 1)[:, None]
        logits = logits.masked_fill(drop.scatter(1, order, drop), -math.inf)
    return logits


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    stage: int,
    min_eos_p: Tensor | None,
    min_draws: Tensor | None,
    n_ranges: int,
    range_size: int,
    first_id: int,
    state: DecodeState | None,
) -> Tensor:
    """See `bark_fast.kernels.sample`."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    turn = (positions % n_ranges)[:, None]
    allowed = (columns >= turn * range_size) & (
        (columns < (turn + 1) * range_size) | (turn == n_ranges - 1)
    )
    if min_draws is not None:
        allowed &= (columns < logits.shape[1] - 1) | (positions >= min_draws)[:, None]
    logits = logits.float().masked_fill(~allowed, -math.inf)
    chosen = logits.argmax(dim=1)
    drawn = (temperature != 0).nonzero()[:, 0]
    if len(drawn):
        processed = process_logits(
            logits[drawn], temperature=temperature[drawn], top_k=top_k[drawn], top_p=top_p[drawn]
        )
        noise = gumbel_noise(seeds[drawn], positions[drawn], stage=stage, n_ids=logits.shape[1])
        chosen[drawn] = (processed + noise).argmax(dim=1)
    last = logits.shape[1] - 1
    if min_eos_p is not None:
        p_end = logits.softmax(dim=1)[:, -1]
        chosen = torch.where((min_eos_p > 0) & (p_end > min_eos_p), last, chosen)
    if state is not None:
        ended = chosen == last if min_eos_p is not None else torch.zeros_like(allowed[:, 0])
        _advance(state, chosen + first_id, ended)
    return chosen


def _advance(state: DecodeState, tokens: Tensor, ended: Tensor) -> None:
    """Write what the next step reads; see `DecodeState`."""
    running = state.finished == 0
    going_on = running & ~ended
    rows = going_on.nonzero()[:, 0]
    state.history[rows, state.draws[rows] % state.history.shape[1]] = tokens[rows]
    state.draws[rows] += 1
    more = going_on & (state.draws < state.limits)
    done = running & ~more
    state.finished[done] = 1
    state.slots[done] = -1
    state.kv_lengths[done] = 0
    rows = more.nonzero()[:, 0]
    at = state.positions[rows] + 1
    page = state.block_tables[rows, at // state.page_size]
    state.token_ids[rows] = tokens[rows]
    state.positions[rows] = at
    state.kv_lengths[rows] = at + 1
    state.slots[rows] = page * state.page_size + at % state.page_size


def gumbel_noise(seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
    """Standard Gumbel noise, float32 [B, n_ids]; see `bark_fast.kernels.random_words`."""
    words = random_words(seeds, positions, stage=stage, n_ids=n_ids)
    u = ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23
    return u.log_().neg_().log_().neg_()


def random_words(seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
    """See `bark_fast.kernels.random_words`."""
    blocks = torch.arange(-(-n_ids // 4), device=seeds.device)
    words = philox_uint32(
        blocks[None, :], positions[:, None], torch.full_like(blocks, stage)[None], seeds[:, None]
    )
    return torch.stack(words, dim=-1).flatten(1)[:, :n_ids]


_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
_UINT32 = 0xFFFFFFFF


def philox_uint32(
    c0: Tensor, c1: Tensor, c2: Tensor, seeds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 (Salmon et al. 2011) with counter (c0, c1, c2, 0) and a 64-bit key.

    All arguments are int64 and broadcast against each other; the counters hold 32-bit values. The
    four words come back as int64 in 0 .. 2**32 - 1.
    """
    c0, c1, c2, key = torch.broadcast_tensors(c0, c1, c2, seeds)
    c3 = torch.zeros_like(c0)
    # The rounds below multiply 32 bits by 32 in int64: the low 64 bits are right whatever the sign.
    k0, k1 = key & _UINT32, (key >> 32) & _UINT32
    for _ in range(10):
        p0, p1 = c0 * _PHILOX_M0, c2 * _PHILOX_M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _UINT32) ^ c1 ^ k0,
            p1 & _UINT32,
            ((p0 >> 32) & _UINT32) ^ c3 ^ k1,
            p0 & _UINT32,
        )
        k0, k1 = (k0 + _PHILOX_W0) & _UINT32, (k1 + _PHILOX_W1) & _UINT32
    return c0, c1, c2, c3
