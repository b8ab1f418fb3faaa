"""The codec's operations by native.c against plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bark_fast.kernels import CodecOps
from bark_fast.kernels.cpu.native_codec import NativeCodec
from bark_fast.kernels.reference import TorchCodec
from helpers.kernels import guarded_outputs, randn
from helpers.native_library import whole_vectors

NATIVE, TORCH = NativeCodec(), TorchCodec()


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    with whole_vectors():
        yield


def convolved(ops: CodecOps, x: Tensor, weight: Tensor, bias: Tensor, **more: object) -> Tensor:
    made = ops.pack_filter(weight, bias, width=x.shape[1])
    return ops.convolution(x, made, **more)  # type: ignore[arg-type]


# Outputs of one panel and of several, and so few that windows are folded, with a rest or without.
@pytest.mark.parametrize("outputs", [1, 5, 12, 16, 31, 32, 40, 100])
@pytest.mark.parametrize(("rows", "width", "n"), [(1, 3, 1), (37, 12, 7), (801, 5, 3), (64, 70, 2)])
def test_convolution(
    monkeypatch: pytest.MonkeyPatch, outputs: int, rows: int, width: int, n: int
) -> None:
    x = randn(rows + n - 1, width, seed=1)
    weight = randn(outputs, n * width, seed=2) / math.sqrt(n * width)
    bias, residual = randn(outputs, seed=3), randn(rows, outputs, seed=4)
    for more in ({}, {"residual": residual}, {"residual": residual, "elu": True}, {"elu": True}):
        exact = convolved(
            TORCH, x.double(), weight.double(), bias.double(),
            **{k: v.double() if isinstance(v, Tensor) else v for k, v in more.items()},
        )  # fmt: skip
        with guarded_outputs(monkeypatch):
            y = convolved(NATIVE, x, weight, bias, **more)
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=3e-6)
        out = torch.full((rows + 2, outputs), math.nan)
        convolved(NATIVE, x, weight, bias, out=out[1:-1], **more)
        assert torch.equal(out[1:-1], y)
        assert out[[0, -1]].isnan().all(), "written beyond the result"


def test_a_convolution_is_torchs() -> None:
    """The layouts of weights and windows are what conv1d computes."""
    x, weight, bias = randn(1, 6, 50, seed=1), randn(9, 6, 4, seed=2), randn(9, seed=3)
    expected = torch.nn.functional.conv1d(x, weight, bias)[0].T
    flat = weight.transpose(1, 2).flatten(1).contiguous()
    y = convolved(TORCH, x[0].T.contiguous(), flat, bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_elu(rows: int) -> None:
    x, residual = 4 * randn(rows, 17, seed=1), randn(rows, 17, seed=2)
    for more in (None, residual):
        y = NATIVE.elu(x, residual=more, out=torch.full_like(x, math.nan))
        total = x if more is None else x + more
        torch.testing.assert_close(y, torch.nn.functional.elu(total), rtol=0, atol=3e-7)
    strange = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, -1e-30, -200.0])
    y = NATIVE.elu(strange, out=torch.empty_like(strange))
    torch.testing.assert_close(
        y, torch.nn.functional.elu(strange), rtol=0, atol=1e-7, equal_nan=True
    )


@pytest.mark.parametrize(("steps", "width"), [(1, 16), (2, 8), (30, 24), (50, 100)])
def test_lstm(steps: int, width: int) -> None:
    gates = randn(steps, 4 * width, seed=1)
    weight = randn(4 * width, width, seed=2) / math.sqrt(width)
    lstm = torch.nn.LSTM(width, width).double()
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.eye(width).repeat(4, 1))
        lstm.weight_hh_l0.copy_(weight)
        lstm.bias_ih_l0.zero_(), lstm.bias_hh_l0.zero_()
    literal = TORCH.lstm(gates.double(), weight.double())
    for _ in range(2):  # the cells of the one before are gone
        y = NATIVE.lstm(gates, NATIVE.pack_weight(weight))
        torch.testing.assert_close(y.double(), literal, rtol=0, atol=2e-6)
    x = randn(steps, width, seed=3).double()
    with torch.no_grad():
        expected = lstm(x[:, None])[0][:, 0]
    torch.testing.assert_close(TORCH.lstm(x.repeat(1, 4), weight.double()), expected)


@pytest.mark.parametrize("where", [0, 7, 29])
def test_what_is_no_number_stays_none(where: int) -> None:
    x = randn(30, 8, seed=1)
    x[where, 3] = math.nan
    assert convolved(NATIVE, x, randn(40, 8), randn(40))[where].isnan().all()
    gates = randn(30, 32, seed=1)
    for gate in range(4):
        bad = gates.clone()
        bad[where, 8 * gate] = math.nan
        y = NATIVE.lstm(bad, NATIVE.pack_weight(randn(32, 8)))
        assert y[where:].isnan().any(1).all()
        assert not y[:where].isnan().any()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_bits_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    x, weight, bias = randn(3001, 24, seed=1), randn(12, 72, seed=2), randn(12, seed=3)
    gates, state = randn(40, 400, seed=4), NATIVE.pack_weight(randn(400, 100, seed=5))
    expected = convolved(NATIVE, x, weight, bias, elu=True), NATIVE.lstm(gates, state)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(convolved(NATIVE, x, weight, bias, elu=True), expected[0])
        assert torch.equal(NATIVE.lstm(gates, state), expected[1])
    finally:
        torch.set_num_threads(before)
