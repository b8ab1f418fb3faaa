"""Every operation in plain torch: the oracle of the faster backends, and usable on any device."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_fast.kernels.ops import (
    LAYER_NORM_EPS,
    Backend,
    CodecOps,
    Norm,
    Weight,
    noise_positions,
)
from bark_fast.kernels.state import NO_TOKEN, DecodeState, Filter, SamplingMetadata, TokenSpace


class TorchBackend(Backend):
    """Computes each operation literally, as the contract defines it."""

    def product(self, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        """Return x @ weight.T + bias for x [N, K] and weight [O, K]."""
        assert isinstance(weight, Tensor), "the weight was packed for another backend"
        return F.linear(x, weight, bias)

    def embedding_sum(
        self, ids: Tensor, tables: Tensor, *, positions: Tensor, position_table: Tensor
    ) -> Tensor:
        total: Tensor | None = None
        for stream, table in zip(ids, tables, strict=True):
            rows = F.embedding(stream.clamp(min=0), table)
            rows = rows.masked_fill_((stream < 0)[:, None], 0)
            total = rows if total is None else total.add_(rows)
        assert total is not None, "ids has no stream"
        return total.add_(F.embedding(positions, position_table))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPS)

    def fused_linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
        residual: Tensor | None = None,
        decode: bool = False,
        workspace: Tensor | None = None,
    ) -> Tensor:
        if norm is not None:
            x = self.layer_norm(x, *norm)
        y = self.product(x, weight, bias)
        if gelu:
            y = F.gelu(y)
        return y if residual is None else y.add_(residual)

    def qkv_to_pages(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        *,
        norm: Norm,
        k_pages: Tensor,
        v_pages: Tensor,
        slot_mapping: Tensor,
        decode: bool = False,
    ) -> Tensor:
        qkv = self.fused_linear(x, weight, bias, norm=norm)
        q, k, v = qkv.view(len(x), 3, *k_pages.shape[1::2]).unbind(1)
        write_pages(k, v, k_pages, v_pages, slot_mapping)
        return q.contiguous()

    def paged_attention(
        self,
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
    ) -> Tensor:
        page_size = k_pages.shape[2]
        out = torch.zeros_like(q)
        q = q.to(k_pages.dtype)
        lengths = seq_lens.tolist()
        if decode or cu_seqlens_q is None:
            offsets = list(range(len(q) + 1))
        else:
            offsets = cu_seqlens_q.tolist()
        for b, (start, stop) in enumerate(pairwise(offsets)):
            length, n = lengths[b], stop - start
            if n == 0 or length == 0:
                continue
            k = _gather_pages(k_pages, block_tables[b], length, page_size)
            v = _gather_pages(v_pages, block_tables[b], length, page_size)
            if 1 < n < length:
                # The queries extend a cache. torch's is_causal would align the mask with the first
                # key; it must be aligned with the last.
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

    def bidirectional_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def codebook_sum(self, codes: Tensor, tables: Tensor) -> Tensor:
        total = F.embedding(codes[:, 0], tables[0])
        for k in range(1, codes.shape[1]):
            total += F.embedding(codes[:, k], tables[k])
        return total.transpose(1, 2).contiguous()

    def sample(
        self,
        logits: Tensor,
        metadata: SamplingMetadata,
        space: TokenSpace,
        *,
        positions: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor:
        positions = noise_positions(positions, state)
        n_columns = logits.shape[1]
        logits = logits.float().masked_fill(
            ~_possible_columns(n_columns, metadata, space, positions), -math.inf
        )
        chosen = logits.argmax(dim=1)
        by_suno = metadata.suno_rules != 0
        p_end_at_last = (chosen == n_columns - 1).float()  # the limit of low temperatures
        rows = (metadata.temperature != 0).nonzero()[:, 0]
        if len(rows):
            processed = process_logits(
                logits[rows],
                temperature=metadata.temperature[rows],
                top_k=metadata.top_k[rows],
                top_p=metadata.top_p[rows],
                suno_rules=by_suno[rows] if by_suno.any() else None,
            )
            if space.has_end and by_suno.any():
                p_end_at_last[rows] = processed.softmax(dim=1)[:, -1]
            noise = gumbel_noise(
                metadata.seeds[rows], positions[rows], stage=space.stage, n_ids=n_columns
            )
            chosen[rows] = (processed + noise).argmax(dim=1)
        ended = torch.zeros_like(chosen, dtype=torch.bool)
        if space.has_end:
            p_end = logits.softmax(dim=1)[:, -1]
            at_once = (metadata.min_eos_p > 0) & (p_end > metadata.min_eos_p)
            at_once = torch.where(by_suno, p_end_at_last >= metadata.min_eos_p, at_once)
            chosen = torch.where(at_once, n_columns - 1, chosen)
            ended = chosen == n_columns - 1
        best = logits.amax(dim=1)  # NaN if one is
        failed = ~best.isfinite()
        chosen = chosen.masked_fill(failed, NO_TOKEN)
        if state is not None:
            tokens = (chosen + space.first_id).masked_fill(failed, NO_TOKEN)
            _advance(state, tokens, ended & ~failed, failed)
        return chosen

    def random_words(self, seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
        return random_words(seeds, positions, stage=stage, n_ids=n_ids)


# Pages --------------------------------------------------------------------------------------------


def write_pages(
    keys: Tensor, values: Tensor, k_pages: Tensor, v_pages: Tensor, slot_mapping: Tensor
) -> None:
    """Store keys and values [N, H, D] of N tokens in their slots of the paged cache.

    Args:
        k_pages, v_pages: [P, H, page_size, D], written in place.
        slot_mapping: int64 [N], page * page_size + offset of each token.
    """
    page_size = k_pages.shape[2]
    if (slot_mapping < 0).any():  # rows without a slot
        rows = slot_mapping >= 0
        keys, values, slot_mapping = keys[rows], values[rows], slot_mapping[rows]
    pages, offsets = slot_mapping // page_size, slot_mapping % page_size
    k_pages[pages, :, offsets] = keys.to(k_pages.dtype)
    v_pages[pages, :, offsets] = values.to(v_pages.dtype)


def _gather_pages(pages: Tensor, table: Tensor, length: int, page_size: int) -> Tensor:
    """Return the first `length` keys or values of a sequence, [H, length, D]."""
    n_pages = -(-length // page_size)
    if n_pages == 1:
        return pages[table[0], :, :length]
    gathered = pages[table[:n_pages]].transpose(0, 1)
    return gathered.reshape(gathered.shape[0], -1, gathered.shape[-1])[:, :length]


# Sampling -----------------------------------------------------------------------------------------


def process_logits(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    suno_rules: Tensor | None = None,
) -> Tensor:
    """Apply temperature, then top-k, then top-p, in transformers' order and meaning.

    Ties are kept or dropped together, at the k-th place and at the edge of p, so that the result
    does not depend on the order of a sort. Top-p drops the least likely tokens as long as what is
    dropped has at most 1 - p, and always keeps one.

    By suno's rules top-p comes first, then top-k, and the temperature divides what is left. Top-p
    then drops as long as what is dropped has less than 1 - p.

    Args:
        logits: float32 [B, V]; -inf for what cannot be sampled.
        temperature: float32 [B], above 0. top_k: int64 [B], 0 keeps all. top_p: float32 [B].
        suno_rules: bool [B]; None is False everywhere.

    Returns:
        float32 [B, V], -inf for what was dropped.
    """
    before: Tensor = temperature
    after: Tensor | None = None
    if suno_rules is not None:
        # They divide at last; the others, first.
        before = temperature.masked_fill(suno_rules, 1)
        after = temperature.masked_fill(~suno_rules, 1)
    logits = logits / before[:, None]
    whole = logits
    limited = (top_k > 0) & (top_k < logits.shape[1])
    if limited.any():
        k = torch.where(limited, top_k, 1)
        best = logits.topk(int(k.max()), dim=1).values
        kth = best.gather(1, k[:, None] - 1)
        logits = logits.masked_fill(limited[:, None] & (logits < kth), -math.inf)
    if (top_p < 1).any():
        # By suno's rules top-p has seen no top-k; what both keep is what is kept.
        seen = logits if suno_rules is None else torch.where(suno_rules[:, None], whole, logits)
        ascending, order = seen.sort(dim=1)
        tail = ascending.softmax(dim=1).cumsum(dim=1)
        # Of equal logits, all have the mass up to the last of them.
        tail = tail.gather(1, torch.searchsorted(ascending, ascending, right=True) - 1)
        rest = (1 - top_p)[:, None]
        drop = tail <= rest
        if suno_rules is not None:
            drop &= (tail < rest) | ~suno_rules[:, None]
        drop[:, -1] = False
        drop &= (top_p < 1)[:, None]
        logits = logits.masked_fill(drop.scatter(1, order, drop), -math.inf)
    return logits if after is None else logits / after[:, None]


def _possible_columns(
    n_columns: int, metadata: SamplingMetadata, space: TokenSpace, positions: Tensor
) -> Tensor:
    """Return the columns that each row can take at its position, bool [B, n_columns]."""
    columns = torch.arange(n_columns, dtype=torch.int64, device=positions.device)
    turn = (positions % space.n_ranges)[:, None]
    # By suno's rules nothing is possible past the last of several ranges.
    open_ended = (turn == space.n_ranges - 1) & (
        (metadata.suno_rules == 0)[:, None] | (space.n_ranges == 1)
    )
    possible = (columns >= turn * space.range_size) & (
        (columns < (turn + 1) * space.range_size) | open_ended
    )
    if space.has_end:
        may_end = positions >= metadata.min_new_tokens
        possible &= (columns < n_columns - 1) | may_end[:, None]
    return possible


def _advance(state: DecodeState, tokens: Tensor, ended: Tensor, failed: Tensor) -> None:
    """Advance the state to the next step with these tokens, ends, and rows without a token."""
    running = state.finished == 0
    going_on = running & ~ended
    rows = going_on.nonzero()[:, 0]
    state.history[rows, state.num_generated[rows] % state.history.shape[1]] = tokens[rows]
    state.num_generated[rows] += 1
    more = going_on & ~failed & (state.num_generated < state.limits)
    done = running & ~more
    state.finished[done] = 1
    state.slot_mapping[done] = -1
    state.seq_lens[done] = 0
    rows = more.nonzero()[:, 0]
    at = state.positions[rows] + 1
    page = state.block_tables[rows, at // state.page_size]
    state.token_ids[rows] = tokens[rows]
    state.positions[rows] = at
    state.seq_lens[rows] = at + 1
    state.slot_mapping[rows] = page * state.page_size + at % state.page_size


def gumbel_noise(seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
    """Return standard Gumbel noise, float32 [B, n_ids]; see `Backend.random_words`."""
    words = random_words(seeds, positions, stage=stage, n_ids=n_ids)
    u = ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23
    return u.log_().neg_().log_().neg_()


def random_words(seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
    """Return the integers behind the noise; see `Backend.random_words`."""
    blocks = torch.arange(-(-n_ids // 4), dtype=torch.int64, device=seeds.device)
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
    """Run Philox-4x32-10 (Salmon et al. 2011) with counter (c0, c1, c2, 0) and a 64-bit key.

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


class TorchCodec(CodecOps):
    """Computes the codec's operations literally."""

    def convolution(
        self,
        x: Tensor,
        filter: Filter,
        *,
        residual: Tensor | None = None,
        elu: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(filter.weight, Tensor)
        windows = x.unfold(0, filter.before + 1, 1).transpose(1, 2).flatten(1)
        y = windows @ filter.weight.T + filter.bias
        y = y if residual is None else y + residual
        y = F.elu(y) if elu else y
        return y if out is None else out.copy_(y)

    def elu(self, x: Tensor, *, residual: Tensor | None = None, out: Tensor) -> Tensor:
        return out.copy_(F.elu(x if residual is None else x + residual))

    def lstm(self, gates: Tensor, weight: Weight) -> Tensor:
        assert isinstance(weight, Tensor)
        state = cell = gates.new_zeros(weight.shape[1])
        rows = []
        for row in gates:
            i, f, c, o = (row + weight @ state).chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * c.tanh()
            state = o.sigmoid() * cell.tanh()
            rows.append(state)
        return torch.stack(rows)
