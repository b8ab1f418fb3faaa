"""Random tensors, guarded outputs, and the measure of error that all kernel tests share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter is silently wrong for bfloat16, so it joins only on a GPU.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def integers(high: int, *shape: int, seed: int = 0, low: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(DEVICE)


def assert_accurate(got: Tensor, plain: Tensor, exact: Tensor, *, factor: float = 2.0) -> None:
    """Assert the contract for low precision.

    The error against float64 is at most `factor` times that of plain torch in the same precision.
    Rounding the exact result is the least error that either can have, so that much is added.
    """
    assert got.shape == exact.shape
    assert got.dtype == plain.dtype
    assert torch.isfinite(got).all(), "an output was not written, or overflowed"
    error = (got.double() - exact).abs().max().item()
    plain_error = (plain.double() - exact).abs().max().item()
    rounding = torch.finfo(got.dtype).eps * exact.abs().max().item()
    assert error <= factor * plain_error + rounding, (error, plain_error)


@contextmanager
def guarded_outputs(monkeypatch) -> Iterator[list[Tensor]]:
    """Make torch.empty and empty_like return memory full of NaN between guard elements.

    The guard elements must be untouched at the end, so that unwritten outputs show as well as
    writes outside.
    """
    guard = 64
    made: list[Tensor] = []
    real_empty = torch.empty

    def sentinel(dtype: torch.dtype) -> float:
        return math.nan if dtype.is_floating_point else -77

    def empty(*size: object, dtype: torch.dtype | None = None, device: object = None) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        dtype = dtype or torch.get_default_dtype()
        count = math.prod(shape)  # type: ignore[arg-type]
        whole = real_empty(count + 2 * guard, dtype=dtype, device=device).fill_(sentinel(dtype))
        made.append(whole)
        return whole[guard : guard + count].view(shape)  # type: ignore[arg-type]

    def empty_like(other: Tensor) -> Tensor:
        return empty(*other.shape, dtype=other.dtype, device=other.device)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        yield made
    for whole in made:
        edges = torch.cat([whole[:guard], whole[-guard:]])
        intact = edges.isnan() if edges.is_floating_point() else edges == -77
        assert intact.all(), "a write outside the output"


def assert_rows_independent(run: Callable[[list[int]], Tensor], n: int) -> None:
    """Assert that each of n rows has the same bits in other places, and three of them alone.

    Backwards the first and the last row change places; turned, the middle one comes first, or last.
    """
    rows = list(range(n))
    with products_in_order():
        together = run(rows)
        for row in (0, n // 2, n - 1):
            assert torch.equal(run([row])[0], together[row]), "alone"
        for order in (rows[::-1], *(rows[k:] + rows[:k] for k in (n // 2, n // 2 + 1))):
            assert torch.equal(run(order), together[order]), order


@contextmanager
def products_in_order() -> Iterator[None]:
    """Make every row of numpy's products add its terms one after another.

    In the interpreter a product of tiles is numpy's, whose BLAS on some CPUs adds a row's terms in
    an order that depends on the row's place in the tile. Tensor cores do not.
    """

    def matmul(a: np.ndarray, b: np.ndarray, dtype: type | None = None) -> np.ndarray:
        dtype = dtype or np.result_type(a, b)
        total = np.zeros((*a.shape[:-1], b.shape[-1]), dtype)
        for k in range(a.shape[-1]):
            total += a[..., :, k, None].astype(dtype) * b[..., None, k, :].astype(dtype)
        return total

    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setattr(np, "matmul", matmul)
        yield
