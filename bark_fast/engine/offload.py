"""Weights that stay on the host, except for those of the stage that runs.

One stretch of device memory, as long as the largest stage needs, holds them by turns. A stage's
weights always come to the same place in it, so what was recorded with them (CUDA graphs) stays
valid. A move is one copy from pinned memory, in the order of the stream: nothing waits for it but
what reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from bark_fast.types import Stage

_ALIGNMENT = 256  # bytes, as torch's own allocations


class Network(Protocol):
    """A model whose weights can be replaced."""

    def map_weights(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put `change(weight)` in the place of every weight."""
        ...


class OffloadedWeights:
    """The weights of several networks, one of which is on the device.

    Attributes:
        n_bytes: of the device that it uses.
        on_device: the stage whose weights are there, None before the first.
        moves: how often one was brought.
    """

    def __init__(self, networks: Mapping[Stage, Network], device: torch.device) -> None:
        """Take the weights off the networks, which are on the host, and give them places on
        `device`; none of them can run before `bring`."""
        pinned = device.type == "cuda"
        lengths = {name: _total_bytes(network) for name, network in networks.items()}
        self.n_bytes = max(lengths.values())
        self._place = torch.empty(self.n_bytes, dtype=torch.uint8, device=device)
        self._stored = {
            name: torch.empty(length, dtype=torch.uint8, device="cpu", pin_memory=pinned)
            for name, length in lengths.items()
        }
        for name, network in networks.items():
            _move_in(network, self._stored[name], self._place)
        self.on_device: Stage | None = None
        self.moves = 0

    def bring(self, stage: Stage) -> None:
        """Bring the weights of `stage` to the device for what is enqueued next."""
        if self.on_device == stage:
            return
        stored = self._stored[stage]
        self.on_device = None  # neither, should the copy fail
        self._place[: len(stored)].copy_(stored, non_blocking=True)
        self.on_device = stage
        self.moves += 1


def _total_bytes(network: Network) -> int:
    total = 0

    def count(weight: Tensor) -> Tensor:
        nonlocal total
        total += _rounded(weight)
        return weight

    network.map_weights(count)
    return total


def _move_in(network: Network, stored: Tensor, place: Tensor) -> None:
    """Copy the weights one after another into `stored`, and give the network the same stretches of
    `place`."""
    at = 0

    def move(weight: Tensor) -> Tensor:
        nonlocal at
        stretch = slice(at, at + weight.numel() * weight.element_size())
        at += _rounded(weight)
        stored[stretch].view(weight.dtype).view(weight.shape).copy_(weight)
        return place[stretch].view(weight.dtype).view(weight.shape)

    network.map_weights(move)


def _rounded(weight: Tensor) -> int:
    n_bytes = weight.numel() * weight.element_size()
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
