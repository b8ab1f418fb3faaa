"""Products and norms against float64, with every prologue and epilogue, in both schedules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bark_fast import kernels
from helpers.kernel_cases import EXTRAS, exact_linear, exact_norm, extras_of
from helpers.kernels import (
    DEVICE,
    DTYPES,
    assert_accurate,
    assert_rows_independent,
    guarded_outputs,
    randn,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "width"), [(1, 48), (5, 64), (3, 768), (2, 1000)])
def test_layer_norm(impl, monkeypatch, dtype, bias, n: int, width: int) -> None:
    # With a mean far from zero, a plain sum of squares would lose all precision.
    x, weight = randn(n, width, dtype=dtype) + 3, randn(width, seed=1, dtype=dtype)
    shift = randn(width, seed=2, dtype=dtype) if bias else None
    with guarded_outputs(monkeypatch):
        got = kernels.layer_norm(x, weight, shift, impl=impl)
    plain = torch.nn.functional.layer_norm(x, (width,), weight, shift)
    assert_accurate(got, plain, exact_norm(x, weight, shift))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_does_not_depend_on_its_neighbours(triton_impl, dtype) -> None:
    x, weight = randn(18, 100, dtype=dtype), randn(100, seed=1, dtype=dtype)
    assert_rows_independent(
        lambda rows: kernels.layer_norm(x[rows], weight, None, impl=triton_impl), 18
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("spec", EXTRAS, ids=lambda s: "+".join(s) or "plain")
@pytest.mark.parametrize(("n", "m", "k"), [(1, 33, 48), (19, 40, 100)])
def test_fused_linear(impl, monkeypatch, dtype, decode, spec, n: int, m: int, k: int) -> None:
    x = randn(n, k, dtype=dtype)
    weight = randn(m, k, seed=1, dtype=dtype) / math.sqrt(k)
    extras = extras_of(spec, n, m, k, dtype)
    before = {name: t.clone() for name, t in extras.items() if isinstance(t, Tensor)}
    with guarded_outputs(monkeypatch):
        got = kernels.fused_linear(x, weight, decode=decode, impl=impl, **extras)
    plain = kernels.fused_linear(x, weight, impl="torch", **extras)
    assert_accurate(got, plain, exact_linear(x, weight, **extras))
    for name, tensor in before.items():
        assert torch.equal(extras[name], tensor), f"{name} is an input"


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("k", [768, 1024, 3072])
def test_the_models_widths(triton_impl, decode: bool, k: int) -> None:
    """Widths that are no power of two, and longer than one chunk of the decode schedule."""
    x, weight = randn(2, k), randn(20, k, seed=1) / math.sqrt(k)
    norm = (randn(k, seed=2), None) if k < 2000 else None
    got = kernels.fused_linear(x, weight, norm=norm, decode=decode, impl=triton_impl)
    plain = kernels.fused_linear(x, weight, norm=norm, impl="torch")
    assert_accurate(got, plain, exact_linear(x, weight, norm=norm))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [3.0, -10.0])
@pytest.mark.parametrize("width", [100, 1024])
def test_a_norm_of_rows_far_from_zero(triton_impl, dtype, mean: float, width: int) -> None:
    """A decode product's norm is folded in, and loses nothing by subtracting the mean later."""
    x, weight = randn(3, width, dtype=dtype) + mean, randn(20, width, seed=1, dtype=dtype)
    norm = (randn(width, seed=2, dtype=dtype), randn(width, seed=3, dtype=dtype))
    got = kernels.fused_linear(x, weight, norm=norm, decode=True, impl=triton_impl)
    plain = kernels.fused_linear(x, weight, norm=norm, impl="torch")
    assert_accurate(got, plain, exact_linear(x, weight, norm=norm))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_a_row_does_not_depend_on_its_neighbours(triton_impl, dtype, decode, norm) -> None:
    x, weight = randn(18, 80, dtype=dtype), randn(40, 80, seed=1, dtype=dtype)
    weights = (randn(80, seed=2, dtype=dtype), None) if norm else None
    assert_rows_independent(
        lambda rows: kernels.fused_linear(
            x[rows], weight, norm=weights, gelu=True, decode=decode, impl=triton_impl
        ),
        18,
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40), m=st.integers(1, 70), k=st.integers(1, 90), decode=st.booleans(),
    spec=st.sampled_from(EXTRAS),
)  # fmt: skip
def test_any_shape(n: int, m: int, k: int, decode: bool, spec: dict) -> None:
    x, weight = randn(n, k), randn(m, k, seed=1) / math.sqrt(k)
    extras = extras_of(spec, n, m, k, torch.float32)
    got = kernels.fused_linear(x, weight, decode=decode, impl="triton", **extras)
    exact = exact_linear(x, weight, **extras)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(("heads", "size"), [(3, 16), (2, 32), (1, 64), (1, 128)])
def test_qkv_to_pages(impl, monkeypatch, dtype, decode, heads: int, size: int) -> None:
    n, width, page_size = 5, heads * size, 4
    x, weight = randn(n, width, dtype=dtype), randn(3 * width, width, seed=1, dtype=dtype)
    weight = weight / math.sqrt(width)
    norm = (randn(width, seed=2, dtype=dtype), None)
    bias = randn(3 * width, seed=3, dtype=dtype)
    slots = torch.tensor([3, 8, 9, 27, 12], device=x.device)
    k_pages = torch.full((7, heads, page_size, size), math.nan, dtype=dtype, device=x.device)
    v_pages = k_pages.clone()
    with guarded_outputs(monkeypatch):
        q = kernels.qkv_to_pages(
            x, weight, bias, norm=norm, k_pages=k_pages, v_pages=v_pages, slot_mapping=slots,
            decode=decode, impl=impl,
        )  # fmt: skip
    exact = exact_linear(x, weight, bias, norm=norm).view(n, 3, heads, size).unbind(1)
    plain = kernels.fused_linear(x, weight, bias, norm=norm).view(n, 3, heads, size).unbind(1)
    pages, offsets = slots // page_size, slots % page_size
    for got, p, e in zip(
        (q, k_pages[pages, :, offsets], v_pages[pages, :, offsets]), plain, exact, strict=True
    ):
        assert_accurate(got, p, e)
    for stored in (k_pages, v_pages):
        assert int(stored.isnan().sum()) == stored.numel() - n * width, "a write outside the slots"


@pytest.mark.parametrize("decode", [True, False])
def test_a_row_without_a_place_writes_nothing(impl, decode: bool) -> None:
    x, weight, norm = randn(3, 32), randn(96, 32, seed=1), (randn(32, seed=2), None)
    k_pages = torch.full((2, 2, 4, 16), math.nan, device=x.device)
    v_pages = k_pages.clone()
    slots = torch.tensor([-1, 5, -1], device=x.device)
    q = kernels.qkv_to_pages(
        x, weight, None, norm=norm, k_pages=k_pages, v_pages=v_pages, slot_mapping=slots,
        decode=decode, impl=impl,
    )  # fmt: skip
    assert q.isfinite().all()
    for pages in (k_pages, v_pages):
        assert pages[1, :, 1].isfinite().all()
        assert int(pages.isfinite().sum()) == 32


@pytest.mark.parametrize("decode", [True, False])
def test_qkv_rows_do_not_depend_on_their_neighbours(triton_impl, decode: bool) -> None:
    x, weight, norm = randn(18, 32), randn(96, 32, seed=1), (randn(32, seed=2), None)

    def run(rows: list[int]) -> torch.Tensor:
        pages = torch.zeros(2, 5, 2, 4, 16, device=x.device)
        slots = torch.arange(len(rows), device=x.device)
        q = kernels.qkv_to_pages(
            x[rows], weight, None, norm=norm, k_pages=pages[0], v_pages=pages[1],
            slot_mapping=slots, decode=decode, impl=triton_impl,
        )  # fmt: skip
        written = pages[:, slots // 4, :, slots % 4]  # [N, 2, H, D]
        return torch.cat([q[:, None], written], dim=1)

    assert_rows_independent(run, 18)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.skipif(DEVICE.type != "cpu", reason="the CPU's path")
def test_the_cpu_path(threads: int, bias: bool, dtype) -> None:
    """One row on several threads, including numbers of W's rows that do not divide among them."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for m in (1, 2, 47, 96):
            for n in (1, 2):
                x, weight = randn(n, 64, dtype=dtype), randn(m, 64, seed=1, dtype=dtype) / 8
                extras = extras_of({"norm": "both", "bias": bias}, n, m, 64, dtype)
                got = kernels.fused_linear(x, weight, impl="cpu", **extras)
                # Too few numbers to compare two maxima of rounding errors.
                tolerance = 8 * torch.finfo(dtype).eps
                exact = exact_linear(x, weight, **extras)
                torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=4 * tolerance)
    finally:
        torch.set_num_threads(before)
