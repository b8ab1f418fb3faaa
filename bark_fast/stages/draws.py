"""What the stages' draws have in common: parameters as tensors, and numbers that keep the noise of
different stages apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.checkpoint.config import Sampling
from bark_fast.kernels import Impl

STAGE_NUMBER = {"semantic": 0, "coarse": 1, "fine": 2}


@dataclass(frozen=True)
class Draw:
    """How one request draws in one stage, and from which seed."""

    sampling: Sampling
    seed: int  # 0 .. 2**64 - 1


def draw_tokens(
    logits: Tensor,
    draws: Sequence[Draw],
    positions: Sequence[int],
    *,
    stage: str,
    impl: Impl,
    repeats: Sequence[int] | None = None,
    min_eos_p: Sequence[float] | None = None,
    n_ranges: int = 1,
    range_size: int = 0,
) -> Tensor:
    """One column for each row of logits [N, V]; the options are those of `kernels.sample`.

    Args:
        draws: one a row; with `repeats`, one for each run of that many rows.
        positions: N places in the rows' own sequences of draws.

    Returns:
        int64 [N]
    """
    device = logits.device

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        tensor = torch.tensor(values, dtype=dtype, device=device)
        if repeats is not None:
            counts = torch.tensor(repeats, device=device)
            # Said here, the size need not be asked of the device.
            tensor = tensor.repeat_interleave(counts, output_size=len(logits))
        return tensor

    return kernels.sample(
        logits,
        temperature=column([d.sampling.temperature for d in draws], torch.float32),
        # Beyond the vocabulary any k means all of it.
        top_k=column([min(d.sampling.top_k, logits.shape[1]) for d in draws], torch.int64),
        top_p=column([d.sampling.top_p for d in draws], torch.float32),
        seeds=column([signed_64(d.seed) for d in draws], torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        stage=STAGE_NUMBER[stage],
        min_eos_p=None if min_eos_p is None else column(list(min_eos_p), torch.float32),
        n_ranges=n_ranges,
        range_size=range_size,
        impl=impl,
    )


def signed_64(seed: int) -> int:
    """The int64 with the 64 bits of `seed`."""
    return seed - 2**64 if seed >= 2**63 else seed
