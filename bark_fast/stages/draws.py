"""How tokens are drawn: a request's parameters, and a batch's as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast.checkpoint.config import SamplingDefaults as Sampling
from bark_fast.models.upload import upload

STAGE_NUMBER = {"semantic": 0, "coarse": 1, "fine": 2}  # keeps the stages' noise apart


@dataclass(frozen=True)
class Draw:
    """How one request draws in one stage, and from which seed."""

    sampling: Sampling
    seed: int  # 0 .. 2**64 - 1
    min_eos_p: float = 0.0
    min_tokens: int = 0

    @property
    def signed_seed(self) -> int:
        """The int64 with the 64 bits of the seed."""
        return self.seed - 2**64 if self.seed >= 2**63 else self.seed


@dataclass(frozen=True)
class DrawTensors:
    """Every row's parameters, [B] each, as `kernels.sample` takes them."""

    temperature: Tensor  # float32
    top_k: Tensor  # int64
    top_p: Tensor  # float32
    seeds: Tensor  # int64
    min_eos_p: Tensor  # float32
    min_draws: Tensor  # int64

    @classmethod
    def of(
        cls, draws: Sequence[Draw], device: torch.device, *, repeats: Sequence[int] | None = None
    ) -> DrawTensors:
        """One row for each of `draws`, or with `repeats` that many for each."""
        rows = None
        if repeats is not None:
            rows = torch.arange(len(draws)).repeat_interleave(torch.tensor(repeats))

        def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            host = torch.tensor(values, dtype=dtype)
            return upload(host if rows is None else host[rows], device=device)

        return cls(
            temperature=column([d.sampling.temperature for d in draws], torch.float32),
            top_k=column([clamp_top_k(d.sampling.top_k) for d in draws], torch.int64),
            top_p=column([d.sampling.top_p for d in draws], torch.float32),
            seeds=column([d.signed_seed for d in draws], torch.int64),
            min_eos_p=column([d.min_eos_p for d in draws], torch.float32),
            min_draws=column([d.min_tokens for d in draws], torch.int64),
        )


def clamp_top_k(top_k: int) -> int:
    """Beyond every vocabulary any k means all of it; an int64 holds this one."""
    return min(top_k, 2**31)
