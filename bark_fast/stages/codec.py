"""Stage 4: all codebooks in, samples out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bark_fast.models.encodec import CodecDecoder


def padded_frames(n: int) -> int:
    """Return the least of 64, 96, 128, 192, 256, 384, ... that is at least n."""
    size = 64
    while size < n:
        size += size // 2 if size & (size - 1) == 0 else size // 3
    return size


class CodecStage:
    """Decodes the codes of any number of utterances.

    Args:
        max_frames: of a padded batch. Batches are padded to a few sizes, rows to a power of two and
            frames as `padded_frames` has it, because cuDNN plans each of its calls anew for every
            shape; what becomes too large is halved. 0 leaves batches as they are.
    """

    def __init__(self, model: CodecDecoder, *, max_frames: int = 0) -> None:
        self.model = model
        self._max_frames = max_frames

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

    def shapes(self) -> list[tuple[int, int]]:
        """Return the padded shapes, rows and frames, of batches of up to `max_frames`."""
        shapes = []
        rows, frames = 1, padded_frames(1)
        if frames < self.model.least_frames:  # padding would have an influence
            return []
        while rows * frames <= self._max_frames:
            while rows * frames <= self._max_frames:
                shapes.append((rows, frames))
                frames = padded_frames(frames + 1)
            rows, frames = 2 * rows, padded_frames(1)
        return shapes

    def warm_ups(self) -> list[Callable[[], object]]:
        """Return a call for each padded shape that decodes a batch of it."""

        def decode(rows: int, frames: int) -> None:
            books, device = len(self.model.codebooks), self.model.device
            self.model.forward(torch.zeros(rows, books, frames, dtype=torch.int64, device=device))

        return [partial(decode, *shape) for shape in self.shapes()]

    def _padded(self, rows: int, frames: int) -> tuple[int, int]:
        return 1 << (rows - 1).bit_length(), padded_frames(frames)

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        frames = [c.shape[1] for c in codes]
        shape = len(codes), max(frames)
        if self._max_frames and max(frames) >= self.model.least_frames:
            padded = self._padded(*shape)
            if padded[0] * padded[1] <= self._max_frames:
                shape = padded
            elif len(codes) > 1:
                half = padded[0] // 2
                return self._decode(codes[:half]) + self._decode(codes[half:])
        batch = codes[0].new_zeros(shape[0], codes[0].shape[0], shape[1])
        for row, c in zip(batch, codes, strict=False):
            row[:, : c.shape[1]] = c
        waves = self.model.forward(batch)
        return [
            wave[: n * self.model.config.hop_length] for wave, n in zip(waves, frames, strict=False)
        ]
