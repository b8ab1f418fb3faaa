"""EnCodec's decoder: codes in, samples out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bark_fast.checkpoint.codec_module import CausalDecoder, build_codec_decoder
from bark_fast.checkpoint.config import CodecConfig
from bark_fast.kernels import Backend
from bark_fast.models.seanet import SEANetDecoder


class CodecDecoder:
    """Residual vector quantiser and convolutional decoder, float32."""

    def __init__(
        self,
        config: CodecConfig,
        tensors: Mapping[str, Tensor],
        prefix: str,
        *,
        n_codebooks: int,
        ops: Backend,
    ) -> None:
        self.config = config
        self._ops = ops
        self.codebooks = torch.stack(
            [tensors[f"{prefix}.quantizer.layers.{k}.codebook.embed"] for k in range(n_codebooks)]
        )
        decoder = build_codec_decoder(config)
        names = decoder.state_dict()
        decoder.load_state_dict({n: tensors[f"{prefix}.decoder.{n}"] for n in names}, assign=True)
        self._decoder = decoder.requires_grad_(False)
        self._flatten()
        self._rows = None
        if ops.codec is not None and SEANetDecoder.suits(decoder):
            self._rows = SEANetDecoder(decoder, ops.codec)
            width = self.codebooks.shape[2]
            self._still = torch.zeros(1, width, dtype=torch.float32, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.codebooks.device

    def _flatten(self) -> None:
        """Put the LSTM's weights in one piece, as cuDNN wants them; else it does at every call."""
        for module in self._decoder.modules():
            if isinstance(module, torch.nn.LSTM):
                module.flatten_parameters()

    @property
    def least_frames(self) -> int:
        """Frames from which on padding behind the input changes nothing before it.

        The decoder is causal, but its convolutions pad what is shorter than a window otherwise.
        """
        if not isinstance(self._decoder, CausalDecoder):
            return sys.maxsize  # not Bark's kind of EnCodec: everything behind has an influence
        modules = self._decoder.modules()
        return max(int(m.kernel_size[0]) for m in modules if isinstance(m, torch.nn.Conv1d))

    def map_weights(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put `change(weight)` in the place of every weight."""
        self.codebooks = change(self.codebooks)
        for tensor in self._decoder.state_dict(keep_vars=True).values():
            tensor.data = change(tensor.data)

    def forward(self, codes: Tensor) -> Tensor:
        """Return samples float32 [B, F * hop_length] of K codebooks' codes int64 [B, K, F]."""
        if self._rows is not None and codes.shape[2] >= self.least_frames:
            return torch.stack([self._rows.forward(self._vectors(each)) for each in codes])
        frames = self._ops.codebook_sum(codes, self.codebooks[: codes.shape[1]])
        samples: Tensor = self._decoder(frames)
        return samples[:, 0]

    def _vectors(self, codes: Tensor) -> Tensor:
        """Return the sums [F, C] of the codebooks' vectors for codes [K, F]."""
        places = torch.zeros(codes.shape[1], dtype=torch.int64, device=self.device)
        tables = self.codebooks[: len(codes)]
        return self._ops.embedding_sum(codes, tables, positions=places, position_table=self._still)
