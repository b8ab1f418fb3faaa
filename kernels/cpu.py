"""The fast CPU path, where it differs from the plain one.

One row in float32, which is every decode step of a single request: the BLAS behind torch runs a
matrix-vector product on one thread, which alone cannot draw the memory's bandwidth. Cut into as
many blocks of rows as there are threads, as a batched product, it runs on all of them. Measured on
2 cores (AMD EPYC, torch 2.13), weights out of cache: 3072 x 768 0.86 -> 0.35 ms, 768 x 3072
0.61 -> 0.35 ms, 768 x 768 0.24 -> 0.09 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias for x [N, K] and weight [M, K]."""
    threads = torch.get_num_threads()
    rows = len(weight) // threads * threads
    if len(x) != 1 or x.dtype != torch.float32 or threads == 1 or rows == 0:
        return F.linear(x, weight, bias)
    blocks = weight[:rows].view(threads, rows // threads, -1)
    y = torch.bmm(blocks, x.t().expand(threads, -1, -1)).view(1, rows)
    if rows < len(weight):
        y = torch.cat([y, F.linear(x, weight[rows:])], dim=1)
    return y if bias is None else y.add_(bias)
