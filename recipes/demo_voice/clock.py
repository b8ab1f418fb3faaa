"""What a transformer knows of time before its first step: where its heads look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipes.demo_voice.network import Block, Transformer


@dataclass(frozen=True)
class Look:
    """Where a head of attention looks before it has learned anything: so many seconds from here, at
    positions of one stream.

    Attributes:
        sharp: the logit of each of the clock's periods at the right time.
    """

    seconds: float
    stream: int
    sharp: float = 1.5


_N_PERIODS, _SLOWEST_S, _FASTEST_S = 15, 20.0, 0.1
CLOCK_SIZE = 2 * _N_PERIODS + 2  # what a position says of itself: the time, its stream, a constant
_OWN_STREAM = 6.0  # the logit of the right stream


def start_with_clock(
    body: Transformer, times: Tensor, streams: Tensor, looks: Sequence[Sequence[Look]]
) -> None:
    """Have heads look at given times from the first step on.

    The first CLOCK_SIZE dimensions are the positions' alone, and no layer writes there, until
    training wants it: the embeddings of tokens must leave them empty. A rotation of the clock's
    hands is a shift in time, and that is what such a head's queries do.

    Args:
        times: of each position, in seconds. Of those that predict, the time of what they predict.
        streams: 1 or -1 for each position.
        looks: of the first heads of each layer.
    """
    periods = torch.logspace(0, 1, _N_PERIODS, base=_SLOWEST_S / _FASTEST_S) * _FASTEST_S
    speed = 2 * torch.pi / periods
    angle = times[:, None] * speed
    one = torch.ones(len(times), 1)
    hands = torch.cat([angle.cos(), angle.sin(), streams[:, None].float(), one], 1)
    size = body.shape.head_size
    assert size >= CLOCK_SIZE - 1
    scale = float(size) ** 0.5 / 2  # of logits; a norm doubles squares, about
    i, n = torch.arange(_N_PERIODS), _N_PERIODS
    with torch.no_grad():
        body.positions.zero_()
        body.positions[:, :CLOCK_SIZE] = hands
        for block, heads in zip(body.blocks, looks, strict=True):
            assert isinstance(block, Block)
            block.out.weight[:CLOCK_SIZE] = 0
            block.down.weight[:CLOCK_SIZE] = 0
            for head, look in enumerate(heads):
                query = block.qkv.weight[head * size : (head + 1) * size]
                key = block.qkv.weight[body.shape.width + head * size :][:size]
                query.zero_(), key.zero_()
                turn, sharp = speed * look.seconds, (look.sharp * scale) ** 0.5
                query[i, i], query[i, i + n] = sharp * turn.cos(), -sharp * turn.sin()
                query[i + n, i], query[i + n, i + n] = sharp * turn.sin(), sharp * turn.cos()
                key[i, i] = key[i + n, i + n] = sharp
                strong = (_OWN_STREAM * scale) ** 0.5
                query[2 * n, 2 * n + 1], key[2 * n, 2 * n] = strong, strong * look.stream


def projected(meanings: Tensor, width: int, *, std: float, seed: int) -> Tensor:
    """Embeddings [N, width] of things that `meanings` [N, D] describe: alike where those are."""
    generator = torch.Generator().manual_seed(seed)
    made = meanings @ torch.randn(meanings.shape[1], width, generator=generator)
    return made * (std / made.std())
