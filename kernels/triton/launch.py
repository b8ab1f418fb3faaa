"""What every launch has in common."""

from __future__ import annotations

from typing import Any

import torch

# Multiply and add in one rounding, said aloud because triton's default is about to change.
ALWAYS: dict[str, Any] = {"enable_fp_fusion": True}


def can_launch_dependent(x: torch.Tensor) -> bool:
    """Whether programmatic dependent launch means anything where x is: not in the interpreter."""
    return x.device.type != "cpu"


def pdl_option(pdl: bool) -> dict[str, Any]:
    """The launch option for programmatic dependent launch, which older targets do not know."""
    return {"launch_pdl": True} if pdl else {}


def dot_precision(dtype: torch.dtype) -> str:
    """How a product of this dtype runs on tensor cores: float32 must not be cut to tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
