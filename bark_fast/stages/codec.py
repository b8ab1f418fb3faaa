"""Stage 4: all codebooks in, samples out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bark_fast.models.encodec import CodecDecoder


class CodecStage:
    """Decodes the codes of any number of utterances."""

    def __init__(self, model: CodecDecoder) -> None:
        self.model = model

    def run(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Decode n codebooks' codes, int64 [n, F], of each utterance to float32 [F * hop_length].

        Both are on the model's device.

        Unequal lengths run together: the decoder is causal, so what is put after an utterance
        changes nothing in it. Only pieces shorter than the first convolution run alone, because
        that pads them otherwise.
        """
        least = self.model.least_frames
        short = [i for i, c in enumerate(codes) if c.shape[1] < least]
        long = [i for i, c in enumerate(codes) if c.shape[1] >= least]
        by_codebooks = [
            [i for i in long if len(codes[i]) == n] for n in sorted({len(codes[i]) for i in long})
        ]
        samples: dict[int, Tensor] = {}
        for group in [[i] for i in short] + by_codebooks:
            for i, wave in zip(group, self._decode([codes[i] for i in group]), strict=True):
                samples[i] = wave
        return [samples[i] for i in range(len(codes))]

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        frames = [c.shape[1] for c in codes]
        batch = codes[0].new_zeros(len(codes), codes[0].shape[0], max(frames))
        for row, c in zip(batch, codes, strict=True):
            row[:, : c.shape[1]] = c
        waves = self.model.forward(batch)
        return [
            wave[: n * self.model.config.hop_length] for wave, n in zip(waves, frames, strict=True)
        ]
