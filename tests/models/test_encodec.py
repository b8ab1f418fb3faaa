"""The codec's decoder against transformers'."""

from __future__ import annotations

import torch

from bark_fast.models.encodec import CodecDecoder
from helpers.checkpoints import Checkpoint


def decoder_of(checkpoint: Checkpoint) -> CodecDecoder:
    model: CodecDecoder = checkpoint.bark.engine.runner.codec.model  # type: ignore[attr-defined]
    return model


def random_codes(checkpoint: Checkpoint, batch: int, frames: int) -> torch.Tensor:
    n_books = checkpoint.config.fine_rules.n_fine_codebooks
    generator = torch.Generator().manual_seed(frames)
    size = checkpoint.config.codebook_size
    return torch.randint(0, size, (batch, n_books, frames), generator=generator)


def test_samples_are_those_of_transformers(small: Checkpoint) -> None:
    codes = random_codes(small, 2, 40)
    with torch.inference_mode():
        samples = decoder_of(small).forward(codes)
        expected = small.model.codec_decode(codes)
    assert samples.shape == (2, 40 * small.config.codec.hop_length)
    torch.testing.assert_close(samples, expected.reshape(samples.shape), rtol=0, atol=1e-5)
    assert samples.std() > 1e-4, "the audio does not depend on its codes"


def test_padding_behind_changes_nothing(small: Checkpoint) -> None:
    decoder = decoder_of(small)
    codes, hop = random_codes(small, 1, 30), small.config.codec.hop_length
    for frames in (decoder.least_frames, 20):
        with torch.inference_mode():
            alone = decoder.forward(codes[..., :frames])
            padded = decoder.forward(codes)[:, : frames * hop]
        torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)
