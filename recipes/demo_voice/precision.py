"""Where bfloat16 is used: where the machine multiplies it faster than float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch


@cache
def has_fast_bfloat16(kind: str) -> bool:
    """Return True if devices of this kind, "cpu" or "cuda", multiply bfloat16 in hardware."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch has none
    return bool(capabilities.get("avx512_bf16"))


def half(device: torch.device) -> AbstractContextManager[Any]:
    """Compute matrix products in bfloat16 where it is fast."""
    if has_fast_bfloat16(device.type):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
