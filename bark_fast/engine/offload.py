"""Weights that stay on the host, but for those of the stage that runs.

One stretch of device memory, as long as the largest stage needs, holds them by turns. A stage's
weights always come to the same place in it, so what was recorded with them (CUDA graphs) stays
valid. A move is one copy from pinned memory, in the order of the stream: nothing waits for it but
what reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bark_fast.engine.engine import CausalRunner, CodecRunner, FineRunner, Runners

_ALIGNMENT = 256  # bytes, as torch's own allocations


class Network(Protocol):
    def map_weights(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put `change(weight)` in the place of every weight."""
        ...


class Shelf:
    """The weights of several networks, one of which is on the device.

    Attributes:
        n_bytes: of the device that it uses.
        on_device: the name of the one that is there, None before the first.
        moves: how often one was brought.
    """

    def __init__(self, networks: Mapping[str, Network], device: torch.device) -> None:
        """Take the weights off the networks, which are on the host, and give them places on
        `device`; none of them can run before `bring`."""
        pinned = device.type == "cuda"
        lengths = {name: _total_bytes(network) for name, network in networks.items()}
        self.n_bytes = max(lengths.values())
        self._place = torch.empty(self.n_bytes, dtype=torch.uint8, device=device)
        self._stored = {
            name: torch.empty(length, dtype=torch.uint8, pin_memory=pinned)
            for name, length in lengths.items()
        }
        for name, network in networks.items():
            _move_in(network, self._stored[name], self._place)
        self.on_device: str | None = None
        self.moves = 0

    def bring(self, name: str) -> None:
        """See to it that the weights of `name` are on the device for what is enqueued next."""
        if self.on_device == name:
            return
        stored = self._stored[name]
        self.on_device = None  # neither, should the copy fail
        self._place[: len(stored)].copy_(stored, non_blocking=True)
        self.on_device = name
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
    """Copy the weights one after another into `stored`; the network gets the same stretches of
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


def with_weights_brought(runners: Runners, shelf: Shelf) -> Runners:
    """The same runners, each of which has its weights brought before it computes."""
    return Runners(
        _Causal(runners.semantic, "semantic", shelf),
        _Causal(runners.coarse, "coarse", shelf),
        _Once(runners.fine, "fine", shelf),
        _Once(runners.codec, "codec", shelf),
    )


class _Causal:
    def __init__(self, runner: CausalRunner, stage: str, shelf: Shelf) -> None:
        self._runner, self._stage, self._shelf = runner, stage, shelf

    def prefill(self, *arguments: Any) -> Any:
        self._shelf.bring(self._stage)
        return self._runner.prefill(*arguments)

    def decode(self, *arguments: Any) -> Any:
        self._shelf.bring(self._stage)
        return self._runner.decode(*arguments)

    def warm_up(self, size: int) -> None:
        self._shelf.bring(self._stage)
        self._runner.warm_up(size)

    def __getattr__(self, name: str) -> Any:  # pages need no weights
        return getattr(self._runner, name)


class _Once:
    def __init__(self, runner: FineRunner | CodecRunner, stage: str, shelf: Shelf) -> None:
        self._runner, self._stage, self._shelf = runner, stage, shelf

    def run(self, *arguments: Any) -> Any:
        self._shelf.bring(self._stage)
        return self._runner.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)
