"""The CPU's packed products: accuracy, and the same bits for a row in every batch."""

from __future__ import annotations

import pytest
import torch

from bark_fast import kernels
from helpers.kernels import assert_accurate, randn

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="they serve machines without one")

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(2304, 768), (768, 3072), (1001, 768), (96, 32)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_in_every_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = kernels.pack_weight(randn(*shape, seed=1, dtype=dtype), impl="cpu")
    x = randn(300, shape[1], seed=2, dtype=dtype)
    together = kernels.fused_linear(x, weight, impl="cpu")
    for n in (1, 2, 3, 7, 16, 17, 64, 257):
        assert torch.equal(kernels.fused_linear(x[:n], weight, impl="cpu"), together[:n]), n
        assert torch.equal(kernels.fused_linear(x[-n:], weight, impl="cpu"), together[-n:]), n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_packed_product_is_a_product(rows: int, dtype: torch.dtype) -> None:
    weight, bias = randn(96, 64, seed=1, dtype=dtype), randn(96, seed=3, dtype=dtype)
    x = randn(rows, 64, seed=2, dtype=dtype)
    packed = kernels.pack_weight(weight, impl="cpu")
    assert packed.shape == weight.shape
    assert_accurate(
        kernels.fused_linear(x, packed, bias, impl="cpu"),
        kernels.fused_linear(x, weight, bias),
        x.double() @ weight.double().T + bias.double(),
    )
