"""The codec stage: unequal lengths together are what each is alone."""

from __future__ import annotations

import numpy as np
import torch

from bark_fast.stages.codec import CodecStage
from helpers.checkpoints import Checkpoint


def test_unequal_lengths_together(small: Checkpoint) -> None:
    """Pieces shorter than the first convolution among them, which run by themselves."""
    stage: CodecStage = small.bark.engine.runner.codec  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    n_books = small.config.fine_rules.n_fine_codebooks
    codes = [
        torch.from_numpy(rng.integers(small.config.codebook_size, size=(n_books, frames)))
        for frames in (40, 1, 12, 3, 41)
    ]
    with torch.inference_mode():
        together = stage.run(codes)
        alone = [stage.run([each])[0] for each in codes]
    hop = small.config.codec.hop_length
    assert [len(wave) for wave in together] == [each.shape[1] * hop for each in codes]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
