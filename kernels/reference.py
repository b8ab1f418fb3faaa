"""Every operation in plain torch: the oracle of the faster implementations, and itself usable on
any device.

Outputs have the inputs' dtype unless said otherwise; sums, softmaxes and norms run in float32 or
better. Nothing here depends on a row's neighbours beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding_sum(
    ids: Tensor, tables: Sequence[Tensor], *, positions: Tensor, position_table: Tensor
) -> Tensor:
    """Sum of K embeddings and a position embedding for each token.

    Args:
        ids: int64 [K, N]; -1 adds nothing (a stream that is silent at that token).
        tables: K tensors [V_k, C]; the same tensor may serve several streams.
        positions: int64 [N], rows of `position_table` [P, C].

    Returns:
        [N, C]
    """
    total: Tensor | None = None
    for stream, table in zip(ids, tables, strict=True):
        rows = F.embedding(stream.clamp(min=0), table)
        rows = rows.masked_fill_((stream < 0)[:, None], 0)
        total = rows if total is None else total.add_(rows)
    assert total is not None, "ids has no stream"
    return total.add_(F.embedding(positions, position_table))


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Layer norm over the last dimension of x [..., C] (Ba et al. 2016); statistics in float32."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: tuple[Tensor, Tensor | None] | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """x @ weight.T with what stands before and after it in a transformer block.

    Args:
        x: [N, K]; weight: [M, K] as torch stores it; bias: [M].
        norm: (weight [K], bias [K] or None) of a layer norm applied to x first.
        gelu: apply the exact GELU (erf) to the product.
        residual: [N, M], added last.

    Returns:
        [N, M]
    """
    if norm is not None:
        x = layer_norm(x, *norm, eps=eps)
    y = F.linear(x, weight, bias)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else y.add_(residual)


def linear_rows(
    x: Tensor, weight: Tensor, first_rows: Tensor, *, n_rows: int, last_row: int
) -> Tensor:
    """Logits of the ids that can be sampled: a slice of the head, its own for each row of x.

    Args:
        x: [B, C]; weight: [V, C].
        first_rows: int64 [B], on the CPU: where each slice starts.
        n_rows: length of the longest slice. last_row: no slice passes this row (exclusive).

    Returns:
        float32 [B, n_rows]; -inf past the end of a row's slice.
    """
    logits = torch.full((len(x), n_rows), -math.inf, dtype=torch.float32, device=x.device)
    for first in sorted(set(first_rows.tolist())):
        rows = (first_rows == first).nonzero()[:, 0]
        stop = min(first + n_rows, last_row)
        logits[rows, : stop - first] = F.linear(x[rows], weight[first:stop]).float()
    return logits


def write_pages(
    keys: Tensor, values: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor
) -> None:
    """Store keys and values [N, H, D] of N tokens in their places of the paged cache.

    Args:
        k_pages, v_pages: [P, H, page_size, D], written in place.
        slots: int64 [N], page * page_size + offset of each token.
    """
    page_size = k_pages.shape[2]
    pages, offsets = slots // page_size, slots % page_size
    k_pages[pages, :, offsets] = keys
    v_pages[pages, :, offsets] = values


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    block_tables: Tensor,
    query_starts: Sequence[int],
    kv_lengths: Sequence[int],
) -> Tensor:
    """Causal attention of packed queries to the pages of their own sequences.

    The queries of sequence b are its last ones: query i of n sees the first
    `kv_lengths[b] - n + 1 + i` keys. Scores are scaled by 1/sqrt(D) (Vaswani et al. 2017, eq. 1);
    paging after Kwon et al. 2023.

    Args:
        q: [N, H, D], the queries of B sequences one after another.
        k_pages, v_pages: [P, H, page_size, D].
        block_tables: int64 [B, max_pages], the pages of each sequence in order.
        query_starts: B + 1 offsets into q.
        kv_lengths: B lengths, the queries' own tokens included.

    Returns:
        [N, H, D]
    """
    page_size = k_pages.shape[2]
    out = torch.empty_like(q)
    for b, (start, stop) in enumerate(pairwise(query_starts)):
        length, n = kv_lengths[b], stop - start
        if n == 0:
            continue
        k = _gather_pages(k_pages, block_tables[b], length, page_size)
        v = _gather_pages(v_pages, block_tables[b], length, page_size)
        if n > 1 and n < length:
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


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every frame to every frame; q, k, v and the result are [B, T, H, D]."""
    heads = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return heads.transpose(1, 2)


def codebook_sum(codes: Tensor, tables: Tensor) -> Tensor:
    """What residual vector quantisation stands for: the sum of a frame's codebook vectors.

    Args:
        codes: int64 [B, K, F]; tables: [K, V, C] (EnCodec, Défossez et al. 2022, section 3.2).

    Returns:
        [B, C, F], the layout that the decoder's first convolution reads.
    """
    total = F.embedding(codes[:, 0], tables[0])
    for k in range(1, codes.shape[1]):
        total += F.embedding(codes[:, k], tables[k])
    return total.transpose(1, 2)


# Sampling -------------------------------------------------------------------------------------


def process_logits(logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Temperature, then top-k, then top-p, in transformers' order and meaning.

    Ties at the k-th place are all kept. Top-p keeps the most likely tokens until the probability of
    those that are left is at most 1 - p, and always one.

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
    min_eos_p: Tensor | None = None,
) -> Tensor:
    """Draw one id a row: argmax of the processed logits plus Gumbel noise (Gumbel 1954).

    The noise is a function of (seed, stage, position, id) alone, so a row draws the same id in any
    batch, in any place, on any device up to rounding.

    Args:
        logits: float32 [B, V] of the ids that can be sampled; where the stage has an end token, it
            is the last column.
        temperature: float32 [B]; 0 takes the first largest logit and draws nothing.
        top_k, top_p: as in `process_logits`.
        seeds: int64 [B], the 64 bits of each row's seed.
        positions: int64 [B], 0 .. 2**32 - 1, the row's place in its own sequence of draws.
        stage: a number that keeps the stages' draws apart.
        min_eos_p: float32 [B] or None: the end token is taken at once if its probability, before
            temperature, exceeds this (transformers' BarkEosPrioritizerLogitsProcessor); 0 never.

    Returns:
        int64 [B]
    """
    greedy = temperature == 0
    chosen = logits.argmax(dim=1)
    if not greedy.all():
        rows = (~greedy).nonzero()[:, 0]
        processed = process_logits(
            logits[rows], temperature=temperature[rows], top_k=top_k[rows], top_p=top_p[rows]
        )
        noise = gumbel_noise(seeds[rows], positions[rows], stage=stage, n_ids=logits.shape[1])
        chosen[rows] = (processed + noise).argmax(dim=1)
    if min_eos_p is not None:
        p_end = logits.softmax(dim=1)[:, -1]
        chosen = torch.where((min_eos_p > 0) & (p_end > min_eos_p), logits.shape[1] - 1, chosen)
    return chosen


def gumbel_noise(seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
    """Standard Gumbel noise for ids 0 .. n_ids - 1 of each row; float32 [B, n_ids].

    Id i takes word i % 4 of the Philox block with counter (i // 4, position, stage, 0). 23 bits of
    it, centred, are the uniform number u in (0, 1), exact in float32; the noise is -log(-log(u)).
    """
    blocks = torch.arange(-(-n_ids // 4), device=seeds.device)
    words = philox_uint32(
        blocks[None, :], positions[:, None], torch.full_like(blocks, stage)[None], seeds[:, None]
    )
    bits = torch.stack(words, dim=-1).flatten(1)[:, :n_ids]
    u = ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23
    return u.log_().neg_().log_().neg_()


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
