"""Weights as the native CPU kernels read them: in 8 bits, and the memory that they lie in."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.kernels.cpu import memory, native
from helpers.kernel_cases import EXTRAS, exact_linear, extras_of
from helpers.kernels import guarded_outputs, randn


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def int8_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    if missing := native.why_not(dtype, int8=True):
        pytest.skip(missing)
    return dtype


def in_8_bits(rows: Tensor) -> Tensor:
    """Each row rounded to 127 steps either way of its largest number, in float64."""
    step = rows.float().abs().amax(dim=1, keepdim=True) / 127
    return (rows.float() / step).round().double() * step.double()


@pytest.mark.parametrize("spec", EXTRAS, ids=lambda s: "+".join(s) or "plain")
@pytest.mark.parametrize(("n", "m", "k"), [(1, 33, 48), (13, 31, 101), (37, 97, 600)])
def test_products_in_8_bits(monkeypatch, int8_dtype, spec, n: int, m: int, k: int) -> None:
    """Sums of bytes are exact, so what is left is the rounding of x and of the weights."""
    x = randn(n, k, dtype=int8_dtype)
    weight = randn(m, k, seed=1, dtype=int8_dtype) / math.sqrt(k)
    extras = extras_of(spec, n, m, k, int8_dtype)
    packed = kernels.pack_weight(weight, impl="int8")
    assert packed.shape == weight.shape
    with guarded_outputs(monkeypatch):
        got = kernels.fused_linear(x, packed, impl="int8", **extras)
    assert got.isfinite().all()
    norm = extras.pop("norm", None)
    normed = x if norm is None else kernels.layer_norm(x, *norm)
    exact = exact_linear(in_8_bits(normed), in_8_bits(weight), **extras)
    # A norm computed another way can round a number to the next byte.
    largest = exact.abs().max().item()
    tolerance = (0.01 if norm is not None else 0) + 4 * torch.finfo(int8_dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=tolerance * largest)


def test_bits_in_8_bits_do_not_depend_on_the_batch(int8_dtype) -> None:
    weight = kernels.pack_weight(randn(100, 96, seed=1, dtype=int8_dtype), impl="int8")
    x = randn(40, 96, seed=2, dtype=int8_dtype)
    together = kernels.fused_linear(x, weight, impl="int8")
    for n in (1, 2, 12, 13, 25):
        assert torch.equal(kernels.fused_linear(x[:n], weight, impl="int8"), together[:n])


def test_rows_of_zeros_in_8_bits(int8_dtype) -> None:
    weight = kernels.pack_weight(torch.zeros(40, 64, dtype=int8_dtype), impl="int8")
    x = torch.zeros(2, 64, dtype=int8_dtype)
    assert (kernels.fused_linear(x, weight, impl="int8") == 0).all()


def test_weights_in_8_bits_are_rounded_as_torch_rounds(int8_dtype) -> None:
    """Units of a row's largest number over 127, halves to even; sums of units tell all of them."""
    weight = randn(70, 101, seed=3, dtype=int8_dtype)
    weight[5] = 0
    weight[6, :3] = torch.tensor([127.0, 0.5, 1.5])
    weight[6, 3:] = 0
    packed = kernels.pack_weight(weight, impl="int8")
    least = torch.finfo(torch.float32).tiny
    scales = weight.float().abs().amax(dim=1).clamp(min=least) / 127
    units = (weight.float() / scales[:, None]).round()
    assert torch.equal(packed.scales, scales)
    assert torch.equal(packed.excess, 128 * units.sum(dim=1, dtype=torch.int32))
    assert units[6, :3].tolist() == [127, 0, 2]
    # One input alone is a column of the weight.
    columns = kernels.fused_linear(torch.eye(101, dtype=int8_dtype), packed, impl="int8").T
    torch.testing.assert_close(columns.float(), (units * scales[:, None]).to(int8_dtype).float())


def test_memory_starts_at_a_line_and_is_shared_by_weights() -> None:
    sizes = [1, 64, 65, 3 << 20, 100, 40 << 20, 7]
    taken = [memory.take(size) for size in sizes]
    for i, (tensor, size) in enumerate(zip(taken, sizes, strict=True)):
        assert tensor.shape == (size,)
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(i)
    assert all((tensor == i).all() for i, tensor in enumerate(taken)), "they do not overlap"
    assert taken[1].data_ptr() - taken[0].data_ptr() == 64, "small ones lie beside each other"


def test_memory_is_given_back() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    before = mapped()
    taken = [memory.take(30 << 20) for _ in range(10)]
    assert mapped() - before > 290 << 20
    del taken
    gc.collect()
    assert mapped() - before < 64 << 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_none_in_8_bits(int8_dtype, bad: float) -> None:
    weight = randn(40, 50, dtype=int8_dtype)
    weight[7, 3] = bad
    y = kernels.fused_linear(
        randn(2, 50, dtype=int8_dtype), kernels.pack_weight(weight, impl="int8"), impl="int8"
    )
    assert y[:, 7].isnan().all()
    assert y.isnan().sum() == len(y), "the other outputs are numbers"


def test_float16_is_packed_as_float32() -> None:
    """No CPU kernel multiplies it, but a weight may come in it."""
    if missing := native.why_not(torch.float32):
        pytest.skip(missing)
    weight = randn(40, 33).half()
    x = randn(3, 33)
    y = kernels.fused_linear(x, kernels.pack_weight(weight, impl="native"), impl="native")
    torch.testing.assert_close(y, x @ weight.float().T)
