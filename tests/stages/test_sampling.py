"""Sampling parameters of a request, and of a batch as tensors."""

from __future__ import annotations

from dataclasses import asdict

import torch

from bark_fast.stages.sampling import SamplingParams, batch_sampling

CPU = torch.device("cpu")


def test_seeds_keep_their_bits() -> None:
    def signed(seed: int) -> int:
        return SamplingParams(1.0, seed).signed_seed

    assert signed(0) == 0
    assert signed(2**63 - 1) == 2**63 - 1
    assert signed(2**63) == -(2**63)
    assert signed(2**64 - 1) == -1


def test_a_batch_is_one_row_for_each() -> None:
    params = [
        SamplingParams(0.5, 2**64 - 1, top_k=3, top_p=0.25, min_eos_p=0.125, min_new_tokens=9),
        SamplingParams(0.0, 7, suno_rules=True),
    ]
    batch = batch_sampling(params, CPU)
    expected = {
        "temperature": torch.tensor([0.5, 0.0]),
        "top_k": torch.tensor([3, 0]),
        "top_p": torch.tensor([0.25, 1.0]),
        "seeds": torch.tensor([-1, 7]),
        "min_eos_p": torch.tensor([0.125, 0.0]),
        "min_new_tokens": torch.tensor([9, 0]),
        "suno_rules": torch.tensor([0, 1]),
    }
    found = asdict(batch)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name
        assert found[name].is_contiguous(), name


def test_every_top_k_fits_an_int64() -> None:
    """Beyond every vocabulary they all keep all of it."""
    params = [SamplingParams(1.0, 0, top_k=k) for k in (0, 2**31 - 1, 2**31, 10**30)]
    assert batch_sampling(params, CPU).top_k.tolist() == [0, 2**31 - 1, 2**31, 2**31]


def test_repeats() -> None:
    params = [SamplingParams(float(i), seed=i, top_k=10 * i) for i in range(3)]
    batch = batch_sampling(params, CPU, repeats=[2, 0, 3])
    assert batch.seeds.tolist() == [0, 0, 2, 2, 2]
    assert batch.temperature.tolist() == [0.0, 0.0, 2.0, 2.0, 2.0]
    assert batch.top_k.tolist() == [0, 0, 20, 20, 20]
