"""The fine stage's windows, codes and passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bark_fast.checkpoint.config import Config
from bark_fast.stages import fine
from bark_fast.types import Voice
from helpers.oracle import random_voice


def windows_of(n_frames: int, n_history: int, config: Config) -> list[tuple[int, int]]:
    return [(w.start, w.first_frame) for w in fine.plan_windows(n_frames, n_history, config)]


@pytest.mark.parametrize(
    ("n_frames", "n_history", "expected"),
    [
        (1, 0, [(0, 0)]),
        (1024, 0, [(0, 0)]),
        (1025, 0, [(0, 0), (1, 511)]),
        (1537, 0, [(0, 0), (512, 0), (513, 511)]),
        (100, 300, [(0, 300)]),
        (512, 512, [(0, 512)]),
        (513, 512, [(0, 512), (1, 512)]),
        (1100, 512, [(0, 512), (512, 512), (588, 512)]),
    ],
)
def test_fine_windows(
    config: Config, n_frames: int, n_history: int, expected: list[tuple[int, int]]
) -> None:
    assert windows_of(n_frames, n_history, config) == expected


@pytest.mark.parametrize("n_history", [0, 1, 300, 512])
def test_fine_windows_cover_every_new_frame(config: Config, n_history: int) -> None:
    for n_frames in (1, 511, 512, 513, 700, 1023, 1024, 1025, 1536, 1537, 3000):
        filled = np.zeros(n_history + n_frames, dtype=bool)
        for start, first in windows_of(n_frames, n_history, config):
            assert start >= 0
            assert start + 1024 <= max(n_history + n_frames, 1024)
            filled[start + first : start + 1024] = True
        assert filled[n_history:].all()


def test_fine_codes(config: Config) -> None:
    voice = Voice(**random_voice(config, 400))
    coarse_codes = np.arange(20).reshape(2, 10)
    codes, n_history = fine.build_codes(coarse_codes, voice, config)
    assert n_history == 512
    assert codes.shape == (1024, 8)
    np.testing.assert_array_equal(codes[:512].numpy(), voice.fine_prompt[:, -512:].T)
    np.testing.assert_array_equal(codes[512:522, :2].numpy(), coarse_codes.T)
    assert (codes[512:, 2:] == 1024).all()
    assert (codes[522:] == 1024).all()


def test_fine_draws_never_share_noise(config: Config) -> None:
    nothing: Any = None
    codes = np.zeros((2, 1600), dtype=np.int64)
    task = fine.FineTask(codes, None, nothing, config, torch.device("cpu"))
    seen: set[int] = set()
    while not task.finished:
        positions = task.sample_positions().tolist()
        assert len(positions) == 1024 - task.window.first_frame
        assert seen.isdisjoint(positions)
        seen.update(positions)
        task.fill(torch.zeros(len(positions), dtype=torch.int64))
    assert task.passes == task.passes_done == 3 * 6


def test_the_last_pass_leaves_what_is_behind_the_speech(config: Config) -> None:
    """Every pass before it fills the padding too, because the next ones read it."""
    nothing: Any = None
    task = fine.FineTask(np.zeros((2, 40), np.int64), None, nothing, config, torch.device("cpu"))
    for codebook in range(2, 8):
        frames = task.frames_to_fill
        assert frames == range(40 if codebook == 7 else 1024)
        task.fill(torch.full((len(frames),), codebook))
    assert task.finished
    assert (task.codes[:40, 2:] == torch.arange(2, 8)).all()
    assert (task.codes[40:, 7] == config.codebook_size).all()
