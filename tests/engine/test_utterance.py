"""An utterance as a pure function of results: what each makes it ready for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import GenerationParams, Speech
from bark_fast.engine.decoder import StepOutput
from bark_fast.engine.kv_cache import prompt_keys
from bark_fast.engine.scheduler import Phase, Ready
from bark_fast.engine.utterance import Outcome, Utterance
from bark_fast.request import Request
from bark_fast.stages.coarse import count_frames
from bark_fast.types import STAGES, Stage
from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import PAGES, alone, fake_config, fake_engine, finish

# Prompts of both causal stages are 33 positions, in pages of 8, and a look comes every 8 steps.
PROMPT, PAGE_SIZE, STEPS = 33, 8, 8


def start(
    small: Checkpoint, *, limit: int = 140, given: list[int] | None = None, **about: Any
) -> Utterance:
    """Return an utterance of at most `limit` semantic tokens, not yet begun."""
    params = GenerationParams(seed=1, min_eos_p=0, max_semantic_tokens=limit)
    request = small.bark.request("Hello", None, params)
    if given is not None:
        request = replace(request, given=tuple(given))
    request = replace(request, **{k: about.pop(k) for k in ("last_stage",) if k in about})
    config = fake_config(page_size=PAGE_SIZE, steps=STEPS)
    return Utterance.start(request, small.config, config, torch.device("cpu"), **about)


def drawn(n: int, *, ended: bool = False) -> StepOutput:
    return StepOutput([7] * n, ended)


def coarse_step(utterance: Utterance) -> Outcome:
    """Draw one coarse token after a prompt, or all that its window still takes."""
    task = utterance.coarse
    n = task.limit - len(task.tokens) if task.prefilled else 1
    first = utterance.config.semantic_rules.semantic_vocab_size
    return utterance.advance("coarse", StepOutput([first + i for i in range(n)], ended=False))


def fine_pass(utterance: Utterance) -> Outcome:
    task = utterance.fine_task
    task.fill(torch.full((len(task.sample_positions()),), task.codebook))
    return utterance.advance("fine", task.codes.numpy().copy() if task.finished else None)


def decode(stage: Stage, positions: int) -> Ready:
    phase = Phase.SEMANTIC_DECODE if stage == "semantic" else Phase.COARSE_DECODE
    return Ready(phase, positions=positions)


def coarse_prompt(utterance: Utterance) -> Ready:
    """Return the work of running the coarse prompt that is open."""
    prompt = utterance.coarse.prompt
    keys = prompt_keys(prompt, PAGE_SIZE)
    return Ready(Phase.COARSE_PREFILL, cost=len(prompt[0]), positions=len(prompt[0]), keys=keys)


# The semantic stage


def test_the_prompt_comes_first(small: Checkpoint) -> None:
    utterance = start(small)
    keys = prompt_keys(utterance.semantic.prompt, PAGE_SIZE)
    assert len(keys) == 4
    assert utterance.begin() == (
        Ready(Phase.SEMANTIC_PREFILL, cost=PROMPT, positions=PROMPT, keys=keys),
    )


@pytest.mark.parametrize(("limit", "positions"), [(140, PROMPT + STEPS), (4, PROMPT + 3)])
def test_steps_follow_the_prompt(small: Checkpoint, limit: int, positions: int) -> None:
    """Up to the next look, but not beyond the limit."""
    utterance = start(small, limit=limit)
    utterance.begin()
    assert utterance.advance("semantic", drawn(1)) == (decode("semantic", positions),)
    assert not utterance.has_ended("semantic")


def test_a_coarse_window_opens_while_the_semantic_stage_goes_on(small: Checkpoint) -> None:
    utterance = start(small)
    utterance.begin()
    utterance.advance("semantic", drawn(1))
    assert utterance.advance("semantic", drawn(30)) == (decode("semantic", PROMPT + 30 + STEPS),)
    semantic, coarse = utterance.advance("semantic", drawn(1))
    assert semantic == decode("semantic", PROMPT + 31 + STEPS)
    assert coarse == coarse_prompt(utterance)
    assert coarse.positions == PROMPT


def test_ready_work_is_not_returned_twice(small: Checkpoint) -> None:
    utterance = start(small)
    utterance.begin()
    assert len(utterance.advance("semantic", drawn(32))) == 2  # type: ignore[arg-type]
    assert utterance.advance("semantic", drawn(1)) == (decode("semantic", PROMPT + 32 + STEPS),)
    # Its own result makes the coarse stage ready again, and says nothing of the semantic one.
    assert coarse_step(utterance) == (decode("coarse", PROMPT + STEPS),)
    assert utterance.advance("semantic", drawn(1)) == (decode("semantic", PROMPT + 33 + STEPS),)
    assert utterance.advance("semantic", drawn(0, ended=True)) == ()
    assert utterance.has_ended("semantic")


def test_a_window_waits_for_its_semantic_tokens(small: Checkpoint) -> None:
    """72 coarse tokens are 22 semantic ones; the next window begins 18 before, so it needs 36."""
    utterance = start(small)
    utterance.begin()
    utterance.advance("semantic", drawn(32))
    while (outcome := coarse_step(utterance)) != ():
        assert len(outcome) == 1  # type: ignore[arg-type]
    assert len(utterance.coarse.tokens) == 72
    assert len(utterance.advance("semantic", drawn(3))) == 1  # type: ignore[arg-type]
    assert utterance.advance("semantic", drawn(1)) == (
        decode("semantic", PROMPT + 35 + STEPS),
        coarse_prompt(utterance),
    )
    # Another window, so another prompt: the text moved on and nothing in the pages is of use.
    assert utterance.coarse.cached == 0


@pytest.mark.parametrize("how", ["end", "length"])
def test_the_last_semantic_tokens_open_the_last_windows(small: Checkpoint, how: str) -> None:
    utterance = start(small, limit=8 if how == "length" else 20)
    utterance.begin()
    utterance.advance("semantic", drawn(1))
    assert utterance.advance("semantic", drawn(7, ended=how == "end")) == (
        coarse_prompt(utterance),
    )
    assert utterance.semantic.finish_reason == how
    assert utterance.coarse.n_tokens == 2 * count_frames(8, small.config)


@pytest.mark.parametrize("last", STAGES)
def test_nothing_was_said(small: Checkpoint, last: Stage) -> None:
    utterance = start(small, last_stage=last)
    utterance.begin()
    speech = utterance.advance("semantic", drawn(0, ended=True))
    assert isinstance(speech, Speech)
    assert (speech.finish_reason, speech.samples.shape) == ("end", (0,))
    assert speech.coarse_tokens.shape == (2, 0)
    assert speech.fine_tokens.shape == (5, 0)


# Given tokens


def test_given_tokens_begin_with_the_coarse_stage(small: Checkpoint) -> None:
    utterance = start(small, given=[5, 6, 7])
    assert utterance.begin() == (coarse_prompt(utterance),)
    assert utterance.coarse.prompt[0][:4] == [5, 6, 7, 230]  # then padding
    assert utterance.has_ended("semantic")
    assert utterance.semantic.finish_reason == "given"


def test_no_given_tokens_are_an_empty_speech(small: Checkpoint) -> None:
    speech = start(small, given=[]).begin()
    assert isinstance(speech, Speech)
    assert (speech.finish_reason, speech.samples.size) == ("given", 0)


# Coarse, fine, codec


def test_the_whole_way(small: Checkpoint) -> None:
    """25 semantic tokens are 41 frames: seven windows of 12 coarse tokens, one fine window."""
    utterance = start(small, given=[3] * 25)
    utterance.begin()
    n_frames = count_frames(25, small.config)
    assert n_frames == 41
    while not utterance.has_ended("coarse"):
        outcome = coarse_step(utterance)
    assert len(utterance.coarse.tokens) == 2 * n_frames == utterance.coarse.n_tokens
    assert outcome == (Ready(Phase.FINE, group=2),)
    assert fine_pass(utterance) == (Ready(Phase.FINE, group=3),)
    assert fine_pass(utterance) == (Ready(Phase.FINE, group=4),)
    assert not utterance.has_ended("fine")
    assert fine_pass(utterance) == (Ready(Phase.CODEC, cost=n_frames),)
    assert utterance.has_ended("fine")
    samples = np.arange(n_frames * 8, dtype=np.float32)
    speech = utterance.advance("codec", samples)
    assert isinstance(speech, Speech)
    assert speech.samples is samples
    assert speech.semantic_tokens.tolist() == [3] * 25
    assert np.array_equal(speech.fine_tokens[:2], speech.coarse_tokens)
    assert speech.fine_tokens[2:].tolist() == [[k] * n_frames for k in (2, 3, 4)]
    assert (speech.seed, speech.text, speech.sample_rate_hz) == (1, "Hello", 8_000)


def test_every_window_has_its_passes(small: Checkpoint) -> None:
    utterance = start(small, given=[3] * 60)  # 99 frames; windows of 64, a hop of 32
    utterance.begin()
    while not utterance.has_ended("coarse"):
        outcome = coarse_step(utterance)
    groups = []
    while outcome[0].phase == Phase.FINE:  # type: ignore[index]
        groups.append(outcome[0].group)  # type: ignore[index]
        outcome = fine_pass(utterance)
    assert groups == [2, 3, 4] * 3


@pytest.mark.parametrize("how", ["end", "length"])
def test_the_semantic_stage_can_be_the_last(small: Checkpoint, how: str) -> None:
    utterance = start(small, limit=40, last_stage="semantic")
    utterance.begin()
    # No coarse window opens, however many tokens there are.
    assert utterance.advance("semantic", drawn(39)) == (decode("semantic", PROMPT + 39),)
    ended = how == "end"
    speech = utterance.advance("semantic", drawn(0 if ended else 1, ended=ended))
    assert isinstance(speech, Speech)
    assert (speech.finish_reason, len(speech.semantic_tokens)) == (how, 39 if ended else 40)
    assert speech.coarse_tokens.size == speech.fine_tokens.size == speech.samples.size == 0


def test_the_coarse_stage_can_be_the_last(small: Checkpoint) -> None:
    utterance = start(small, given=[3] * 10, last_stage="coarse")
    outcome = utterance.begin()
    while not isinstance(outcome, Speech):
        outcome = coarse_step(utterance)
    assert outcome.coarse_tokens.shape == (2, count_frames(10, small.config))
    assert outcome.fine_tokens.shape == (5, 0)


def test_the_fine_stage_can_be_the_last(small: Checkpoint) -> None:
    utterance = start(small, given=[3] * 10, last_stage="fine")
    utterance.begin()
    while not utterance.has_ended("coarse"):
        coarse_step(utterance)
    outcome = [fine_pass(utterance) for _ in range(3)][-1]
    assert isinstance(outcome, Speech)
    assert outcome.fine_tokens.shape == (5, count_frames(10, small.config))
    assert outcome.samples.size == 0


# What the caller hears of it


def test_progress(small: Checkpoint) -> None:
    heard: list[tuple[str, int, int]] = []
    utterance = start(small, limit=40, on_progress=lambda *about: heard.append(about))
    utterance.begin()
    utterance.advance("semantic", drawn(3))
    utterance.report("semantic")
    utterance.advance("semantic", drawn(7, ended=True))
    utterance.report("semantic")
    coarse_step(utterance)
    utterance.report("coarse")
    while not utterance.has_ended("coarse"):
        coarse_step(utterance)
    fine_pass(utterance)
    utterance.report("fine")
    utterance.report("codec")
    n_coarse = 2 * count_frames(10, small.config)
    assert heard == [
        ("semantic", 3, 40),
        ("semantic", 10, 10),  # now it is known
        ("coarse", 1, n_coarse),
        ("fine", 1, 3),
        ("codec", 1, 1),
    ]


def test_a_stage_lasts_from_its_first_batch_to_its_last(small: Checkpoint) -> None:
    utterance = start(small, last_stage="semantic")
    utterance.begin()
    utterance.ran("semantic", 10.0, 11.0)
    utterance.advance("semantic", drawn(1))
    utterance.ran("semantic", 14.0, 14.5)
    speech = utterance.advance("semantic", drawn(0, ended=True))
    assert isinstance(speech, Speech)
    assert speech.timings == {"semantic": 4.5}


def test_coarse_windows_begin_before_the_text_has_ended(small: Checkpoint) -> None:
    """Which is early for a long text: the first window needs 32 of the 140 semantic tokens."""
    engine = fake_engine(small.config, n_pages=PAGES, policy="latency", steps=1)
    seed = next(
        seed
        for seed in range(1000)
        if len(alone(small, long_request(small, seed)).semantic_tokens) > 60
    )
    progress: list[tuple[str, int]] = []
    engine.submit(
        long_request(small, seed),
        progress=lambda stage, done, total: progress.append((stage, done)),
    )
    finish(engine)
    first_coarse = next(i for i, (stage, _) in enumerate(progress) if stage == "coarse")
    last_semantic = max(i for i, (stage, _) in enumerate(progress) if stage == "semantic")
    assert first_coarse < last_semantic
    assert progress[first_coarse - 1] == ("semantic", 32)


def long_request(small: Checkpoint, seed: int) -> Request:
    return small.bark.request(
        "a", None, GenerationParams(seed=seed, max_semantic_tokens=140, min_eos_p=0)
    )
