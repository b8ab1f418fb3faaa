"""Sampling parameters of a request, and of a batch as tensors."""

from __future__ import annotations

from bark_fast.stages.sampling import SamplingParams


def test_seeds_keep_their_bits() -> None:
    def signed(seed: int) -> int:
        return SamplingParams(1.0, seed).signed_seed

    assert signed(0) == 0
    assert signed(2**63 - 1) == 2**63 - 1
    assert signed(2**63) == -(2**63)
    assert signed(2**64 - 1) == -1
