"""The codec's operations by `csrc/native.c`: convolutions as products of rows that overlap.

Measured on 2 cores (AMD EPYC, Zen 3), the decoder of the demo voice in ms, by oneDNN and by these:

                        one thread    two threads
    2.0 s of speech       94 /  64       56 /  37
    6.0 s of speech      216 / 119      189 / 103
"""

from __future__ import annotations

import torch
from torch import Tensor

from bark_fast.kernels.cpu.operations import KIND, Elu, Linear, Lstm, pointer
from bark_fast.kernels.cpu.program import pack, run
from bark_fast.kernels.ops import CodecOps, Weight
from bark_fast.kernels.state import Filter, PackedWeight

_PANEL = 32  # outputs that are computed together, whether they are wanted or not


class NativeCodec(CodecOps):
    """See `CodecOps`."""

    def pack_weight(self, weight: Tensor) -> Weight:
        return pack(weight)

    def pack_filter(self, weight: Tensor, bias: Tensor, *, width: int) -> Filter:
        n, k = weight.shape
        places = _PANEL // n
        if places < 2:
            return Filter(pack(weight), bias, width)
        folded = weight.new_zeros(places, n, k + (places - 1) * width)
        for i, own in enumerate(folded):
            own[:, i * width : i * width + k] = weight
        whole = Filter(pack(folded.flatten(0, 1)), bias.repeat(places), width)
        return Filter(pack(weight), bias, width, whole, places)

    def convolution(
        self,
        x: Tensor,
        filter: Filter,
        *,
        residual: Tensor | None = None,
        elu: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        n, rows = filter.weight.shape[0], x.shape[0] - filter.before
        y = torch.empty(rows, n, dtype=torch.float32, device="cpu") if out is None else out
        done = 0
        if filter.folded is not None:
            done = rows // filter.places * filter.places
            _multiply(x, filter.folded, residual, elu, y, done // filter.places, filter.places)
        if done < rows:
            after = None if residual is None else residual[done:]
            _multiply(x[done:], filter, after, elu, y[done:], rows - done)
        return y

    def elu(self, x: Tensor, *, residual: Tensor | None = None, out: Tensor) -> Tensor:
        operation = Elu(
            kind=KIND["ELU"], y=out.data_ptr(), x=x.data_ptr(), residual=pointer(residual),
            n=x.numel(),
        )  # fmt: skip
        run(operation, out, x, residual)
        return out

    def lstm(self, gates: Tensor, weight: Weight) -> Tensor:
        assert isinstance(weight, PackedWeight)
        steps, width = len(gates), weight.shape[1]
        y = torch.empty(steps, width, dtype=torch.float32, device="cpu")
        operation = Lstm(
            kind=KIND["LSTM"], y=y.data_ptr(), x=gates.data_ptr(),
            panels=weight.panels.data_ptr(), steps=steps, width=width,
        )  # fmt: skip
        run(operation, y, gates, weight)
        return y


def _multiply(
    x: Tensor,
    filter: Filter,
    residual: Tensor | None,
    elu: bool,
    y: Tensor,
    rows: int,
    places: int = 1,
) -> None:
    """Multiply `rows` windows, each `places` rows behind the one before."""
    assert isinstance(filter.weight, PackedWeight)
    n, k = filter.weight.shape
    operation = Linear(
        kind=KIND["LINEAR"], y=y.data_ptr(), x=x.data_ptr(),
        panels=filter.weight.panels.data_ptr(), bias=filter.bias.data_ptr(),
        residual=pointer(residual), elu=elu, rows=rows, n=n, k=k, x_stride=places * filter.width,
    )  # fmt: skip
    run(operation, y, x, filter, residual)
