"""Suno's functions draw from torch's generator; each test begins with the same one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_draws() -> Iterator[None]:
    """Seed torch's generator: one random model's draw in a hundred ends before its limit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
