"""Between host and device without waiting for either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Tensor | Sequence[Any], *, device: torch.device) -> Tensor:
    """`values`, a tensor on the host or int64 numbers or lists of them, on `device`.

    To CUDA it goes through pinned memory, in the order of the current stream: a plain copy would
    wait until all that was enqueued before it has run.
    """
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def download(tensor: Tensor) -> Callable[[], Tensor]:
    """Enqueue the way of `tensor` to the host; what comes back waits for it, and for nothing that
    was enqueued later."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> Tensor:
        arrived.synchronize()
        return host

    return wait
