"""The values that operations share besides plain tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_TOKEN = -1
"""What `Backend.sample` gives where there is nothing to draw from, in place of a column or id."""


@dataclass(frozen=True)
class DecodeState:
    """The running sequences of a decode loop, all on the device.

    `Backend.sample` writes it, and the next step's embedding, cache and attention read it, so the
    loop needs no host.

    Attributes:
        token_ids: int64 [B], the tokens to run next.
        positions: int64 [B], their positions in the model's sequence.
        seq_lens: int64 [B], the number of keys that they see, including their own; 0 for an empty
            row.
        slot_mapping: int64 [B], the slots that their keys and values go to; -1 for none.
        block_tables: int64 [B, max_pages], the pages of each sequence in order.
        num_generated: int64 [B], tokens generated so far, which is the position of the next
            token's noise.
        limits: int64 [B], the number of generated tokens at which a row ends.
        finished: int32 [B], 1 once a row has ended. It is then an empty row, which reads no page
            and writes none.
        history: int64 [B, W], the generated ids: token p is stored at p % W, so reading it at least
            every W steps misses none. NO_TOKEN is the last of a row that had nothing to draw from.
        page_size: positions in a page.
    """

    token_ids: Tensor
    positions: Tensor
    seq_lens: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    num_generated: Tensor
    limits: Tensor
    finished: Tensor
    history: Tensor
    page_size: int


@dataclass(frozen=True)
class SamplingMetadata:
    """The sampling parameters of each row of a batch.

    Attributes:
        temperature: float32 [B]; 0 takes the first largest logit and uses no noise.
        top_k: int64 [B]; 0 keeps all.
        top_p: float32 [B]; 1 keeps all.
        seeds: int64 [B], the 64 bits of each row's seed.
        min_eos_p: float32 [B]; the end token is taken at once if its probability, before
            temperature, exceeds this (transformers' BarkEosPrioritizerLogitsProcessor); 0 turns
            this off.
        suno_rules: int64 [B]; 1 samples as suno's code does instead: top-p, then top-k, then
            temperature; the end token is taken if its probability after all three is at least
            `min_eos_p`, whatever that is; and the last of alternating codebooks ends where it ends.
        min_new_tokens: int64 [B]; the end token is impossible at positions before this one.

    `min_eos_p` and `min_new_tokens` are read only where `TokenSpace.has_end` is true.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor
    min_eos_p: Tensor
    min_new_tokens: Tensor
    suno_rules: Tensor


@dataclass(frozen=True)
class TokenSpace:
    """The meaning of a stage's columns of logits.

    Attributes:
        stage: a number that keeps the noise of different stages apart.
        first_id: the token id of column 0, which `DecodeState` counts from.
        has_end: whether the last column is the end token.
        n_ranges, range_size: alternating codebooks. At position p only `range_size` columns are
            possible, starting at (p % n_ranges) * range_size; the last range extends to the end of
            the row (but not by suno's rules).
    """

    stage: int
    first_id: int = 0
    has_end: bool = False
    n_ranges: int = 1
    range_size: int = 0


@dataclass(frozen=True)
class PackedWeight:
    """A weight [O, K] in the panels of the native CPU kernels, which only products can read.

    Attributes:
        panels: uint8.
        shape: [O, K].
        scales: float32 [O] for a weight in 8 bits, the value of one unit of each row.
        excess: int32 [O] for a weight in 8 bits, 128 times the sum of a row's units, because x is
            shifted by 128 to be unsigned.
    """

    panels: Tensor
    shape: torch.Size
    scales: Tensor | None = None
    excess: Tensor | None = None


@dataclass(frozen=True)
class Filter:
    """A convolution's weight for windows of n rows of C channels.

    Attributes:
        weight: [O, n C].
        bias: [O].
        width: C.
        folded: the same for `places` windows at once, [places O, (n - 1 + places) C], zeros where
            a window does not reach; None if there is none.
    """

    weight: Tensor | PackedWeight
    bias: Tensor
    width: int
    folded: Filter | None = None
    places: int = 1

    @property
    def before(self) -> int:
        """n - 1: the rows that come before the first one."""
        return int(self.weight.shape[1]) // self.width - 1
