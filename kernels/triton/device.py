"""What launches are chosen by: the device that they are for."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """The properties of a device that decide which launches suit it."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int

    @classmethod
    def of(cls, device: torch.device) -> Device:
        properties = torch.cuda.get_device_properties(device)
        return cls(
            properties.name,
            (properties.major, properties.minor),
            properties.multi_processor_count,
        )


# Few multiprocessors, so that in Triton's interpreter a persistent program takes several tiles.
_NO_GPU = Device("none", (0, 0), 2)
_assumed: ContextVar[Device] = ContextVar("assumed", default=_NO_GPU)


@contextmanager
def assuming(device: Device) -> Iterator[None]:
    """Take tensors that are on no GPU for those of `device` inside the block."""
    token = _assumed.set(device)
    try:
        yield
    finally:
        _assumed.reset(token)


def device_of(x: torch.Tensor) -> Device:
    """Return the device of x."""
    return _real_device(x.device) if x.device.type == "cuda" else _assumed.get()


@functools.cache
def _real_device(device: torch.device) -> Device:
    return Device.of(device)
