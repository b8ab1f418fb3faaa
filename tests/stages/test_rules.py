"""The stages' token rules, each against a number worked out by hand or against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bark_fast.checkpoint.config import Config
from bark_fast.stages import coarse, fine, semantic
from bark_fast.stages.draws import signed_64
from bark_fast.types import Voice
from checkpoints import Checkpoint, bark_windows
from oracle import random_voice


@pytest.fixture(scope="module")
def config() -> Config:
    """Bark's own ids, rates and windows."""
    return Config.from_dicts(*bark_windows())


def voice_of(config: Config, n_semantic: int) -> Voice:
    return Voice(**random_voice(config, n_semantic))


# Semantic.


def test_semantic_prompt_is_text_plus_history_then_infer(config: Config) -> None:
    text, history = semantic.build_prompt([5, 6], [7, 8, 9], config.semantic_rules)
    assert len(text) == len(history) == 257
    assert text[:3] == [5 + 10_048, 6 + 10_048, 129_595]
    assert set(text[2:256]) == {129_595}
    assert text[256] == 129_599
    assert history[:3] == [7, 8, 9]
    assert set(history[3:256]) == {10_000}
    assert history[256] == semantic.SILENT


def test_semantic_prompt_keeps_the_start_of_text_and_the_end_of_history(config: Config) -> None:
    text, history = semantic.build_prompt(
        list(range(300)), list(range(1000, 1300)), config.semantic_rules
    )
    assert text[0] == 10_048
    assert text[255] == 255 + 10_048
    assert history[:256] == list(range(1044, 1300))


def test_semantic_samples_its_vocabulary_and_the_end(config: Config) -> None:
    assert semantic.sampled_ids(config.semantic_rules) == list(range(10_001))


def test_a_task_that_lost_its_pages_runs_its_tokens_again() -> None:
    task = semantic.SemanticTask(([1, 2, 3], [4, 5, -1]), 10, 0.0, draw=None)  # type: ignore[arg-type]
    task.tokens = [70, 71]
    task.cached = 4
    chunk = task.chunk([0])
    assert (chunk.ids, chunk.start) == ([[71], [-1]], 4)
    task.cached = 0
    chunk = task.chunk([0])
    assert (chunk.ids, chunk.start) == ([[1, 2, 3, 70, 71], [4, 5, -1, -1, -1]], 0)


# Coarse.


def test_number_of_coarse_tokens_is_rounded_as_transformers_rounds(
    config: Config, small: Checkpoint
) -> None:
    for c in (config, small.config):
        lengths = torch.arange(0, 3000)
        ratio, n = c.semantic_to_coarse_ratio, c.coarse_rules.n_coarse_codebooks
        expected = torch.round(torch.floor(lengths * ratio / n) * n).int().tolist()
        assert [coarse.count_tokens(i, c) for i in lengths.tolist()] == expected
    assert coarse.count_tokens(499, config) == 1500
    assert coarse.count_frames(1, config) == 1


def test_codes_and_ids(config: Config) -> None:
    codes = np.array([[1, 2], [3, 4]])
    ids = coarse.codes_to_ids(codes, config)
    assert ids == [10_001, 11_027, 10_002, 11_028]
    np.testing.assert_array_equal(coarse.ids_to_codes(ids, config), codes)
    # Past the last codebook: wraps, as transformers' remainder does.
    np.testing.assert_array_equal(coarse.ids_to_codes([10_000, 12_050], config), [[0], [2]])


@pytest.mark.parametrize(
    ("n_semantic", "expected_semantic", "expected_coarse"),
    [
        (400, 209, 626),  # round(209 * 3.006) - 2
        (209, 208, 623),  # even, round(208 * 3.006) - 2
        (7, 6, 16),
        (2, 1, 1),  # 3 frames last for 1 semantic token only
    ],
)
def test_voice_trimming(
    config: Config, n_semantic: int, expected_semantic: int, expected_coarse: int
) -> None:
    voice = voice_of(config, n_semantic)
    semantic_ids, coarse_ids = coarse.trim_voice(voice, config)
    assert (len(semantic_ids), len(coarse_ids)) == (expected_semantic, expected_coarse)
    assert semantic_ids == voice.semantic_prompt[-expected_semantic:].tolist()
    assert coarse_ids == coarse.codes_to_ids(voice.coarse_prompt, config)[-expected_coarse - 2 : -2]


def test_no_voice_no_history(config: Config) -> None:
    assert coarse.trim_voice(None, config) == ([], [])


def test_window_prompt(config: Config) -> None:
    tokens = list(range(300))
    first = coarse.window_prompt(tokens, 0, [], 0, config)
    assert first == [*tokens[:256], 12_050]
    # 660 tokens are 219.6 semantic ones; the window starts 209 before, at 11.
    generated = list(range(20_000, 20_660))
    later = coarse.window_prompt(tokens, 0, generated, 660, config)
    assert later[:256] == tokens[11:267]
    assert later[256:] == [12_050, *generated[-630:]]
    # Near the end of the text the window is padded on the right.
    last = coarse.window_prompt(tokens, 0, generated, 840, config)
    assert last[:256] == [*tokens[70:], *[12_048] * 26]


def test_sampled_ids_go_to_the_end_of_the_vocabulary(config: Config) -> None:
    assert coarse.sampled_ids(config) == range(10_000, 12_096)


def run_coarse(task: coarse.CoarseTask) -> tuple[list[int], int]:
    """Give the task made-up tokens; returns the tokens run before each draw and the windows."""
    run, windows = [], 1
    prompt = task.prompt
    while not task.finished:
        chunk = task.chunk([0])
        run.append(len(chunk.ids[0]))
        task.add(10_000 + len(task.tokens), chunk.start + len(chunk.ids[0]))
        if task.prompt is not prompt:
            prompt, windows = task.prompt, windows + 1
    return run, windows


def test_windows_keep_their_cache_while_it_is_exact(config: Config) -> None:
    task = coarse.CoarseTask.start(list(range(499)), None, draw=None, config=config)  # type: ignore[arg-type]
    assert task.n_tokens == 1500
    run, windows = run_coarse(task)
    assert windows == 25
    # One prompt for the first eleven windows; then the semantic window moves and each is run anew.
    assert [i for i, n in enumerate(run) if n > 1] == [0, *range(660, 1500, 60)]
    assert run[0] == 257
    assert set(run[660::60]) == {257 + 630}
    assert max(run) + 59 <= task.max_length <= config.coarse.block_size


def test_a_long_voice_moves_every_window(config: Config) -> None:
    task = coarse.CoarseTask.start(
        list(range(100)),
        voice_of(config, 400),
        draw=None,
        config=config,  # type: ignore[arg-type]
    )
    run, _ = run_coarse(task)
    assert [i for i, n in enumerate(run) if n > 1] == list(range(0, 300, 60))


# Fine.


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
    voice = voice_of(config, 400)
    coarse_codes = np.arange(20).reshape(2, 10)
    codes, n_history = fine.build_codes(coarse_codes, voice, config)
    assert n_history == 512
    assert codes.shape == (1024, 8)
    np.testing.assert_array_equal(codes[:512].numpy(), voice.fine_prompt[:, -512:].T)
    np.testing.assert_array_equal(codes[512:522, :2].numpy(), coarse_codes.T)
    assert (codes[512:, 2:] == 1024).all()
    assert (codes[522:] == 1024).all()


def test_fine_draws_never_share_noise(config: Config) -> None:
    task = fine.FineTask(np.zeros((2, 1600), dtype=np.int64), None, None, config)  # type: ignore[arg-type]
    seen: set[int] = set()
    while not task.finished:
        positions = task.draw_positions()
        assert len(positions) == 1024 - task.window.first_frame
        assert seen.isdisjoint(positions)
        seen.update(positions)
        task.fill(torch.zeros(len(positions), dtype=torch.int64))
    assert task.passes == task.passes_done == 3 * 6


def test_seeds_keep_their_bits() -> None:
    assert signed_64(0) == 0
    assert signed_64(2**63 - 1) == 2**63 - 1
    assert signed_64(2**63) == -(2**63)
    assert signed_64(2**64 - 1) == -1
