"""The CPU path without AVX2 or a compiler: plain torch, except for products.

Products go to oneDNN with weights that were packed once, into blocks that its kernels read
sequentially. The BLAS behind `F.linear` runs one float32 row on one thread, which cannot use the
memory's whole bandwidth. Measured on 2 cores (AMD EPYC, Zen 5, torch 2.13), the four products of 12
layers of 768, in ms, `F.linear` against packed:

              1 row         16 rows       1 024 rows
    float32   19.9 / 6.6    35.3 / 11.3   960 / 411
    bfloat16   7.2 / 5.5     9.8 /  6.5   208 / 200

A row's bits do not depend on the number of rows as long as there are at least two. With one, oneDNN
sums in another order, so a single row is run as two.

Keys and values are float32 whatever the model's dtype, because attention of a decode step runs
sequence by sequence and torch's bfloat16 attention takes four times as long for one query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bark_fast.kernels.ops import Weight
from bark_fast.kernels.reference import TorchBackend

_PACKED_FOR_ROWS = 16  # the layout for this number of rows serves all others as well


def _can_pack(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_linear_pointwise")):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class OneDnnBackend(TorchBackend):
    """Plain torch, except that oneDNN computes products of packed weights."""

    def pack_weight(self, weight: Tensor) -> Tensor:
        """Return the weight in the blocks that `product` reads, or itself without oneDNN."""
        if weight.device.type != "cpu" or not _can_pack(weight.dtype):
            return weight
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            weight.contiguous(), _PACKED_FOR_ROWS
        )
        return packed

    def kv_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32

    def product(self, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        if not isinstance(weight, Tensor) or not weight.is_mkldnn:
            return super().product(x, weight, bias)
        rows = x if len(x) > 1 else x.expand(2, -1).contiguous()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return y[: len(x)]
