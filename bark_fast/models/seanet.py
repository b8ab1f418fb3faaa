"""EnCodec's decoder as a CPU computes it best: one sequence of rows, channels last.

Then the windows of a convolution lie in memory as they are, each a row of a product, and what a
transposed convolution makes of one row are as many rows one after another. The network is SEANet
(Défossez et al. 2022, section 3.1); its weights are those of the torch module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from bark_fast.checkpoint import codec_module
from bark_fast.checkpoint.codec_module import CausalDecoder
from bark_fast.kernels import CodecOps, Filter, Weight


@dataclass(frozen=True)
class Block:
    """A residual block: `shortcut`, None for the identity, beside two convolutions."""

    first: Filter
    second: Filter
    shortcut: Filter | None


@dataclass(frozen=True)
class Upsampling:
    """What makes `factor` rows of each, as one row, and what follows."""

    filter: Filter
    factor: int
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Recurrence:
    """A layer of LSTM."""

    gates: Filter
    weight: Weight


class SEANetDecoder:
    """The decoder of vectors [F, C] to samples.

    Args:
        decoder: the module with its weights, of the kind that `suits` names.
    """

    def __init__(self, decoder: CausalDecoder, ops: CodecOps) -> None:
        self._ops = ops
        layers: list[Any] = list(decoder.layers)
        self._first = self._filter(layers[0].conv)
        self._layers = self._recurrences(layers[1].lstm)
        self._last = self._filter(layers[-1].conv)
        starts = [i for i, layer in enumerate(layers) if isinstance(layer, codec_module.Upsampling)]
        self._upsamplings = [
            self._upsampling(layers[start], layers[start + 1 : end - 1])
            for start, end in zip(starts, [*starts[1:], len(layers) - 1], strict=True)
        ]

    @staticmethod
    def suits(decoder: torch.nn.Module) -> TypeGuard[CausalDecoder]:
        """Return True for a causal decoder of plain convolutions, as Bark's is."""
        if not isinstance(decoder, CausalDecoder):
            return False
        modules = list(decoder.modules())
        plain = [m for m in modules if isinstance(m, torch.nn.Conv1d)]
        # The module pads what is shorter than a window in another way; rows become no fewer.
        first = plain[0].kernel_size[0] if len(decoder.layers) > 4 else 0
        return all(m.kernel_size[0] <= first and m.dilation == (1,) for m in plain)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return samples float32 [F * hop_length * channels] of vectors [F, C], of which there are
        more than the first convolution looks back."""
        ops = self._ops
        x = self._from_start(vectors)
        y = x
        for layer in self._layers:
            y = ops.lstm(ops.convolution(y, layer.gates), layer.weight)
        room, rows = _room(len(x), x.shape[1], before=1)
        room[:1] = 0
        ops.elu(y, residual=x, out=rows)
        for i, upsampling in enumerate(self._upsamplings):
            y = ops.convolution(room, upsampling.filter)
            y = y.view(len(y) * upsampling.factor, -1)
            is_last = i == len(self._upsamplings) - 1
            before = self._last.before if is_last else 1
            room, rows = _room(len(y), y.shape[1], before=before)
            for block in upsampling.blocks[:-1]:
                y = self._block(y, block)
            if upsampling.blocks:
                self._block(y, upsampling.blocks[-1], elu=True, out=rows)
            else:
                ops.elu(y, out=rows)
            if is_last:
                _reflect(room, before)
            else:
                room[:1] = 0
        return ops.convolution(room, self._last).flatten()

    def _from_start(self, vectors: Tensor) -> Tensor:
        before = self._first.before
        room, rows = _room(*vectors.shape, before=before)
        rows.copy_(vectors)
        _reflect(room, before)
        return self._ops.convolution(room, self._first)

    def _block(
        self, x: Tensor, block: Block, *, elu: bool = False, out: Tensor | None = None
    ) -> Tensor:
        ops, first, second = self._ops, block.first, block.second
        beside = block.shortcut
        residual = x if beside is None else ops.convolution(x, beside)
        room, rows = _room(*x.shape, before=first.before)
        ops.elu(x, out=rows)
        _reflect(room, first.before)
        y = ops.convolution(room, first, elu=True)
        return ops.convolution(y, second, residual=residual, elu=elu, out=out)

    def _filter(self, module: torch.nn.Conv1d) -> Filter:
        """[O, C, n] as [O, n C]."""
        weight = module.weight.transpose(1, 2).flatten(1)
        return self._packed(weight, module.bias, module.in_channels)

    def _packed(self, weight: Tensor, bias: Tensor | None, width: int) -> Filter:
        assert bias is not None
        return self._ops.pack_filter(weight.contiguous(), bias.contiguous(), width=width)

    def _upsampling(self, layer: Any, blocks: Sequence[Any]) -> Upsampling:
        """[C, O, 2 s] as [s O, 2 C]: row t gives s rows, of what is its own and the last one's."""
        module: torch.nn.ConvTranspose1d = layer.conv
        factor = module.stride[0]
        own, later = module.weight.permute(2, 1, 0).chunk(2)  # [s, O, C] each
        weight = torch.cat([later, own], 2).flatten(0, 1)
        assert module.bias is not None
        made = self._packed(weight, module.bias.repeat(factor), module.in_channels)
        return Upsampling(made, factor, [self._made(block) for block in blocks])

    def _made(self, block: Any) -> Block:
        convolutions = [layer.conv for layer in block.block if hasattr(layer, "conv")]
        shortcut = getattr(block.shortcut, "conv", None)
        return Block(
            self._filter(convolutions[0]),
            self._filter(convolutions[1]),
            None if shortcut is None else self._filter(shortcut),
        )

    def _recurrences(self, lstm: torch.nn.LSTM) -> list[Recurrence]:
        made = []
        for of_input, of_state, *biases in lstm.all_weights:
            gates = self._packed(of_input, biases[0] + biases[1], of_input.shape[1])
            made.append(Recurrence(gates, self._ops.pack_weight(of_state)))
        return made


def _room(rows: int, width: int, *, before: int) -> tuple[Tensor, Tensor]:
    """Return memory for rows with some more before them, and the rows in it."""
    room = torch.empty(before + rows, width, dtype=torch.float32, device="cpu")
    return room, room[before:]


def _reflect(room: Tensor, before: int) -> None:
    """Write what is before the first row: the rows behind it in reverse, as EnCodec pads."""
    room[:before] = room[before + 1 : 2 * before + 1].flip(0)
