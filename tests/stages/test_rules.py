"""The stages' token rules, each against a number worked out by hand or against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.config import SamplingDefaults as Sampling
from bark_fast.checkpoint.reading import parse_config
from bark_fast.stages import coarse, fine, semantic
from bark_fast.stages.draws import Draw
from bark_fast.types import Voice
from helpers.checkpoints import Checkpoint, bark_windows
from helpers.oracle import random_voice


@pytest.fixture(scope="module")
def config() -> Config:
    """Bark's own ids, rates and windows."""
    return parse_config(*bark_windows())


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


def test_a_task_runs_its_prompt_and_then_its_last_token() -> None:
    task = semantic.SemanticTask(draw=None, prompt=([1, 2, 3], [4, 5, -1]), limit=3)  # type: ignore[arg-type]
    chunk = task.chunk([0])
    assert (chunk.ids, chunk.start) == ([[1, 2, 3], [4, 5, -1]], 0)
    assert task.positions_after(8) == 3
    task.accept([70], ended=False)
    assert (task.prefilled, task.last_id, task.cached) == (True, 70, 3)
    # The last token before the limit is never run.
    assert task.positions_after(1) == 4
    assert task.positions_after(8) == 5
    task.accept([71, 72], ended=False)
    assert (task.last_id, task.cached, task.finish_reason) == (72, 5, "length")


def test_a_shared_prefix_is_not_run() -> None:
    task = semantic.SemanticTask(draw=None, prompt=([1, 2, 3], [4, 5, -1]), limit=3)  # type: ignore[arg-type]
    task.cached = 2
    chunk = task.chunk([0])
    assert (chunk.ids, chunk.start) == ([[3], [-1]], 2)
    task.accept([], ended=True)
    assert task.finish_reason == "end"


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
    assert coarse.window_start(0, 0, config) == 0
    first = coarse.window_prompt(tokens, [], config)
    assert first == [*tokens[:256], 12_050]
    # 660 tokens are 219.6 semantic ones; the window starts 209 before, at 11.
    assert coarse.window_start(660, 0, config) == 11
    generated = list(range(20_000, 20_660))
    later = coarse.window_prompt(tokens[11:], generated, config)
    assert later[:256] == tokens[11:267]
    assert later[256:] == [12_050, *generated[-630:]]
    # Near the end of the text the window is padded on the right.
    assert coarse.window_start(840, 0, config) == 70
    last = coarse.window_prompt(tokens[70:], generated, config)
    assert last[:256] == [*tokens[70:], *[12_048] * 26]


def test_sampled_ids_go_to_the_end_of_the_vocabulary(config: Config) -> None:
    assert coarse.sampled_ids(config) == range(10_000, 12_096)


def coarse_task(
    n_semantic: int, voice: Voice | None, config: Config, *, complete: bool = True
) -> coarse.CoarseTask:
    task = coarse.CoarseTask.start(voice, None, config)  # type: ignore[arg-type]
    task.extend(range(n_semantic), complete=complete)
    return task


def run_coarse(task: coarse.CoarseTask, steps: int) -> tuple[dict[int, int], int]:
    """Give an open task made-up tokens; returns the length of each prompt that was run, by the
    tokens drawn before it, and the most positions that the pages had to hold."""
    prompts, most = {}, 0
    while task.open:
        n = min(steps, task.limit - len(task.tokens)) if task.prefilled else 1
        most = max(most, task.positions_after(steps))
        if not task.prefilled:
            prompts[len(task.tokens)] = len(task.chunk([0]).ids[0])
        task.accept([10_000 + len(task.tokens) + i for i in range(n)], ended=False)
    return prompts, most


@pytest.mark.parametrize("steps", [1, 7, 60])
def test_windows_keep_their_cache_while_it_is_exact(config: Config, steps: int) -> None:
    task = coarse_task(499, None, config)
    assert task.n_tokens == 1500
    prompts, most = run_coarse(task, steps)
    assert task.finished
    # One prompt for the first eleven windows; then the semantic window moves and each is run anew.
    assert prompts == {0: 257} | dict.fromkeys(range(660, 1500, 60), 257 + 630)
    assert most == 257 + 630 + 59  # the last token of a window is never run


def test_a_long_voice_moves_every_window(config: Config) -> None:
    prompts, _ = run_coarse(coarse_task(100, voice_of(config, 400), config), 60)
    assert list(prompts) == list(range(0, 300, 60))


def test_no_window_opens_before_its_semantic_tokens_are_known(config: Config) -> None:
    """And none waits for more than its own: the windows are those of the whole utterance."""
    whole = coarse_task(499, None, config)
    expected: list[list[int]] = []
    task = coarse_task(0, None, config, complete=False)
    opened = []
    for n in range(1, 500):
        task.extend([n - 1], complete=n == 499)
        while task.open:
            if not task.prefilled or len(task.tokens) == task.prompt_end:
                opened.append((n, task.prompt[0]))
            task.accept([10_000 + len(task.tokens)], ended=False)
    while whole.open:
        if not whole.prefilled or len(whole.tokens) == whole.prompt_end:
            expected.append(whole.prompt[0])
        whole.accept([10_000 + len(whole.tokens)], ended=False)
    assert [prompt for _, prompt in opened] == expected
    # Eleven windows read the first 256 semantic tokens; the next one starts at 11 (660 tokens are
    # 219.6 semantic ones, the window begins 209 before).
    at = [n for n, _ in opened]
    assert at[:11] == [256] * 11
    assert at[11:14] == [11 + 256, 31 + 256, 50 + 256]
    assert at[-1] == 499


def test_an_early_voice_window(config: Config) -> None:
    task = coarse_task(46, voice_of(config, 400), config, complete=False)
    assert task.n_semantic_history == 209
    assert not task.open
    task.extend([46], complete=False)
    assert task.open
    assert task.limit == 60


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
    nothing: Any = None
    codes = np.zeros((2, 1600), dtype=np.int64)
    task = fine.FineTask(codes, None, nothing, config, torch.device("cpu"))
    seen: set[int] = set()
    while not task.finished:
        positions = task.draw_positions().tolist()
        assert len(positions) == 1024 - task.window.first_frame
        assert seen.isdisjoint(positions)
        seen.update(positions)
        task.fill(torch.zeros(len(positions), dtype=torch.int64))
    assert task.passes == task.passes_done == 3 * 6


def test_seeds_keep_their_bits() -> None:
    def signed(seed: int) -> int:
        return Draw(Sampling(1.0), seed).signed_seed

    assert signed(0) == 0
    assert signed(2**63 - 1) == 2**63 - 1
    assert signed(2**63) == -(2**63)
    assert signed(2**64 - 1) == -1
