"""Options and arithmetic that all launches share."""

from __future__ import annotations

from typing import Any

import torch

# Multiply and add with one rounding; explicit because Triton's default is about to change.
ALWAYS: dict[str, Any] = {"enable_fp_fusion": True}


def can_launch_dependent(x: torch.Tensor) -> bool:
    """Return whether x is on a device that knows programmatic dependent launch.

    Triton's interpreter, which runs on CPU tensors, does not.
    """
    return x.device.type != "cpu"


def pdl_option(pdl: bool) -> dict[str, Any]:
    """Return the option for programmatic dependent launch; older targets do not know it."""
    return {"launch_pdl": True} if pdl else {}


def dot_precision(dtype: torch.dtype) -> str:
    """Return the precision of products of this dtype; float32 must not be reduced to tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """Return the least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
