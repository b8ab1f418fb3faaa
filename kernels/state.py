"""What one decode step leaves for the next, all on the device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DecodeState:
    """The running sequences of a decode loop. `sample` writes it and the next step's embedding,
    cache and attention read it, so the loop needs no host.

    Attributes:
        token_ids: int64 [B], the tokens to run next.
        positions: int64 [B], their positions in the model's sequence.
        kv_lengths: int64 [B], keys that they see, their own included; 0 for an empty row.
        slots: int64 [B], where their keys and values go; -1 nowhere.
        block_tables: int64 [B, max_pages].
        draws: int64 [B], tokens drawn so far: the position of the next draw's noise.
        limits: int64 [B], a row ends when it has drawn so many.
        finished: int32 [B], 1 once a row has ended: it is then an empty row, which reads no page
            and writes none.
        history: int64 [B, W], the ids drawn: draw p at p % W, so a look at it every W steps or more
            often misses none.
        page_size: positions a page.
    """

    token_ids: Tensor
    positions: Tensor
    kv_lengths: Tensor
    slots: Tensor
    block_tables: Tensor
    draws: Tensor
    limits: Tensor
    finished: Tensor
    history: Tensor
    page_size: int
