"""Muon (Jordan 2024), in bfloat16 where that is fast: many CPUs only emulate it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from recipes.demo_voice.precision import has_fast_bfloat16

# Jordan's quintic: five rounds bring singular values between 0.001 and 1 near 1.
_A, _B, _C, _ROUNDS = 3.4445, -4.7750, 2.0315, 5
_ADAM_RMS = 0.2  # an Adam step's root mean square, so that one rate serves both (Liu et al. 2025)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal matrix closest to `matrix` [m, n], by Newton and Schulz's iteration."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    if has_fast_bfloat16(x.device.type):
        x = x.bfloat16()
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    x = x if matrix.shape[0] <= matrix.shape[1] else x.T
    return x.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices, and for filters [out, in, width] as the matrices [out, in * width] they are."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.02
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"].lerp_(weight.grad, 1 - group["momentum"])
                step = orthogonal(weight.grad.lerp(mean, group["momentum"]).flatten(1))
                size = _ADAM_RMS * max(step.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(step.view_as(weight), alpha=-group["lr"] * size)
