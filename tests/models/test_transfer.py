"""Copies between host and device, on a host that is the device."""

from __future__ import annotations

import torch

from bark_fast.models.transfer import to_device, to_host_async

CPU = torch.device("cpu")


def test_numbers_become_int64() -> None:
    for values in ([1, 2**62], [[1, 2], [3, 4]]):
        tensor = to_device(values, device=CPU)
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == values


def test_tensors_keep_their_dtype() -> None:
    values = torch.tensor([0.5, 1.5])
    assert torch.equal(to_device(values, device=CPU), values)


def test_a_copy_is_there_when_it_is_asked_for() -> None:
    values = torch.arange(5)
    wait = to_host_async(values)
    assert torch.equal(wait(), torch.arange(5))
