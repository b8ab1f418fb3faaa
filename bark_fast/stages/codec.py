"""Stage 4: all codebooks in, samples out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bark_fast.models.encodec import CodecDecoder
from bark_fast.types import IntArray


class CodecStage:
    """Decodes the codes of any number of utterances."""

    def __init__(self, model: CodecDecoder) -> None:
        self.model = model

    def run(self, codes: Sequence[IntArray]) -> list[Tensor]:
        """Decode each utterance's codes [n_fine, F] to samples float32 [F * hop_length].

        The samples stay on the device.

        Unequal lengths run together: the decoder is causal, so what is put after an utterance
        changes nothing in it. Only pieces shorter than the first convolution run alone, because
        that pads them otherwise.
        """
        least = self.model.least_frames
        short = [i for i, c in enumerate(codes) if c.shape[1] < least]
        long = [i for i, c in enumerate(codes) if c.shape[1] >= least]
        samples: dict[int, Tensor] = {}
        for group in [[i] for i in short] + ([long] if long else []):
            for i, wave in zip(group, self._decode([codes[i] for i in group]), strict=True):
                samples[i] = wave
        return [samples[i] for i in range(len(codes))]

    def _decode(self, codes: Sequence[IntArray]) -> list[Tensor]:
        frames = [c.shape[1] for c in codes]
        shape = len(codes), codes[0].shape[0], max(frames)
        batch = torch.zeros(shape, dtype=torch.int64, device="cpu")
        for row, c in zip(batch, codes, strict=True):
            row[:, : c.shape[1]] = torch.from_numpy(c)
        waves = self.model.forward(batch.to(self.model.device))
        return [
            wave[: n * self.model.config.hop_length] for wave, n in zip(waves, frames, strict=True)
        ]
