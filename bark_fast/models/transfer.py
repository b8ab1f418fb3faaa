"""Copies between host and device that wait for neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor | Sequence[Any], *, device: torch.device) -> Tensor:
    """Return `values`, a tensor on the host or int64 numbers or lists of them, on `device`.

    To CUDA they go through pinned memory, in the order of the current stream: a plain copy would
    wait until everything enqueued before it has run.
    """
    host = (
        values
        if isinstance(values, Tensor)
        else torch.tensor(values, dtype=torch.int64, device="cpu")
    )
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def fill(target: Tensor, values: Tensor) -> None:
    """Enqueue the copy of `values`, on the host, into `target`, which stays where it is."""
    pinned = values.pin_memory() if target.device.type == "cuda" else values
    target.copy_(pinned, non_blocking=True)


def to_host_async(tensor: Tensor) -> Callable[[], Tensor]:
    """Enqueue the copy of `tensor` to the host.

    Returns:
        A function that waits for this copy, and for nothing enqueued later, and returns it, in
        memory that may be pinned: what users keep should be a copy.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = mark(tensor.device)

    def wait() -> Tensor:
        arrived()
        return host

    return wait


def mark(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until what is enqueued on `device` so far has run."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize
