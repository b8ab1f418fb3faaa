"""The fine transformer against transformers'."""

from __future__ import annotations

import pytest
import torch

from bark_fast.models.fine_gpt import FineGPT
from helpers.checkpoints import Checkpoint


@pytest.mark.parametrize("codebook", [2, 3, 4])
def test_logits_are_those_of_transformers(small: Checkpoint, codebook: int) -> None:
    model: FineGPT = small.bark.engine.runner.fine.model  # type: ignore[attr-defined]
    n_books, size = model.config.n_codes_total, small.config.codebook_size
    generator = torch.Generator().manual_seed(codebook)
    codes = torch.randint(0, size + 1, (2, 30, n_books), generator=generator)
    with torch.inference_mode():
        expected = small.model.fine_acoustics(codebook, input_ids=codes).logits
        states = model.forward(codes, codebook)
        logits = model.logits(states, codebook)
    assert logits.shape == (60, size)
    torch.testing.assert_close(logits, expected[..., :size].flatten(0, 1), rtol=0, atol=1e-4)


def test_later_codebooks_are_not_read(small: Checkpoint) -> None:
    model: FineGPT = small.bark.engine.runner.fine.model  # type: ignore[attr-defined]
    codes = torch.zeros(1, 10, model.config.n_codes_total, dtype=torch.int64)
    other = codes.clone()
    other[..., 3:] = 5
    with torch.inference_mode():
        assert torch.equal(model.forward(codes, 2), model.forward(other, 2))
        assert not torch.equal(model.forward(codes, 3), model.forward(other, 3))


def test_wanted_frames_are_those_of_all(small: Checkpoint) -> None:
    model: FineGPT = small.bark.engine.runner.fine.model  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 9, (2, 21, model.config.n_codes_total), generator=generator)
    wanted = torch.tensor([3, 4, 20, 21, 41])
    with torch.inference_mode():
        some, all_ = model.forward(codes, 4, wanted=wanted), model.forward(codes, 4)
    torch.testing.assert_close(some, all_[wanted], rtol=0, atol=1e-5)
    if small.bark.impl == "native":
        assert torch.equal(some, all_[wanted])
