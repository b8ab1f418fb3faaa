"""Options and arithmetic that all launches share, and the rules of dependent launches.

Programmatic dependent launch (PDL) lets a kernel start before the one before it in the stream has
ended. The kernels of a decode step keep these rules:

* `gdc_launch_dependents` comes first. It lets the next kernel's programs move in where there is
  room, which is why registers are counted, and promises nothing about memory.
* Until `gdc_wait` a program reads nothing but weights, and writes nothing. The wait returns when
  the kernel before has ended and its writes are visible.
* Every program waits, those too that have nothing to do. So a kernel has not ended before the one
  before it has, nor that before the one before it, and so on: behind its wait a program may read
  whatever any earlier kernel wrote, and overwrite whatever an earlier one read.

Other kernels (torch's, copies, prefill) have no such attribute or give no early sign: each waits
for all before it, and what follows waits for all of it. So weights that were copied or computed
are there before the first dependent kernel behind them starts.
"""

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
