"""Stage 4: all codebooks in, samples out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bark_fast.models.encodec import CodecDecoder
from bark_fast.types import FloatArray, IntArray


class CodecStage:
    """Decodes the codes of any number of utterances."""

    def __init__(self, model: CodecDecoder) -> None:
        self.model = model

    def run(self, codes: Sequence[IntArray]) -> list[FloatArray]:
        """Samples float32 [F * hop_length] of each utterance's codes [n_fine, F]."""
        return [self._decode(own) for own in codes]

    def _decode(self, codes: IntArray) -> FloatArray:
        if codes.shape[1] == 0:
            return np.empty(0, dtype=np.float32)
        batch = torch.from_numpy(codes)[None].to(self.model.device)
        samples: FloatArray = self.model.forward(batch)[0].cpu().numpy()
        return samples
