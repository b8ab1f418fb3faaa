"""Each utterance is what it is alone: whoever joins, leaves, is cancelled or takes its pages."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import GenerationParams, Speech
from bark_fast.engine.engine import Engine
from bark_fast.request import Request
from bark_fast.types import STAGES
from helpers.checkpoints import Checkpoint
from helpers.engines import gib_for, make_engine, one_by_one, random_requests, run_all, same


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_size": 64, "policy": "latency"},
        {"max_batch_size": 5, "policy": "throughput", "steps_per_look": 3},
        {"page_size": 4, "steps_per_look": 1},
        {"page_size": 16, "max_fine_windows": 4, "max_codec_frames": 500},
        {"max_prefill_tokens": 1},
    ],
    ids=str,
)
def test_together_as_alone(
    small: Checkpoint, requests: list[Request], alone: list[Speech], options: dict[str, Any]
) -> None:
    engine = make_engine(small, **options)
    together = run_all(engine, requests)
    assert [same(a, b) for a, b in zip(together, alone, strict=True)] == [True] * 64
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.samples, b.samples, rtol=0, atol=1e-5)
    if options.get("max_batch_size") != 5:
        assert engine.stats().stages["semantic"].utterances_a_batch > 1.5


@pytest.mark.parametrize("page_size", [4, None])
def test_with_hardly_any_pages(
    small: Checkpoint, requests: list[Request], alone: list[Speech], page_size: int | None
) -> None:
    """Utterances wait, or lose their pages to older ones and get them back."""
    block = small.config.semantic.block_size
    engine = make_engine(
        small,
        page_size=page_size,
        kv_cache_gib=gib_for(small, 1.6 if page_size else 2.1, page_size or block),
        max_batch_size=32,
        policy="latency",
    )
    together = run_all(engine, requests)
    assert [same(a, b) for a, b in zip(together, alone, strict=True)] == [True] * 64
    if page_size:
        assert engine.stats().preempted > 0


def test_with_others_cancelled_around(
    small: Checkpoint, requests: list[Request], alone: list[Speech]
) -> None:
    rng = random.Random(5)
    engine = make_engine(small, page_size=8, steps_per_look=2)
    futures: list[Future[Speech]] = []
    cancelled = set()
    while len(futures) < 64 or engine.has_work:
        if len(futures) < 64:
            futures.append(engine.submit(requests[len(futures)]))
        engine.step()
        if rng.random() < 0.2:
            victim = rng.randrange(len(futures))
            if victim % 2 and engine.cancel(futures[victim]):
                cancelled.add(victim)
    assert len(cancelled) > 8
    assert engine.used_pages == 0
    for i, future in enumerate(futures):
        assert future.cancelled() == (i in cancelled)
        if i not in cancelled:
            assert same(future.result(timeout=0), alone[i])
    stats = engine.stats()
    assert (stats.cancelled, stats.finished, stats.active) == (
        len(cancelled),
        64 - len(cancelled),
        0,
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"policy": "latency", "steps_per_look": 3, "page_size": 4}, {"page_size": 4, "gib": 1.6}],
    ids=str,
)
def test_parts_of_the_way_among_others(
    small: Checkpoint, requests: list[Request], alone: list[Speech], options: dict[str, Any]
) -> None:
    """Some stop early and some begin with semantic tokens: every part is that of the whole."""
    rng = random.Random(2)
    parts = []
    for request, speech in zip(requests, alone, strict=True):
        given = rng.choice([None, tuple(speech.semantic_tokens.tolist()) or None])
        last = rng.choice(STAGES if given is None else STAGES[1:])
        parts.append(replace(request, given=given, last_stage=last))
    if "gib" in options:
        gib = gib_for(small, options["gib"], options["page_size"])
        options = {"page_size": options["page_size"], "kv_cache_gib": gib, "max_batch_size": 32}
    engine = make_engine(small, **options)
    together = run_all(engine, parts)
    assert ("kv_cache_gib" in options) == (engine.stats().preempted > 0)
    for part, speech, whole in zip(parts, together, alone, strict=True):
        for stage, name in zip(STAGES, NAMES, strict=True):
            if STAGES.index(stage) > STAGES.index(part.last_stage):
                assert getattr(speech, name).size == 0
            elif name == "samples":
                np.testing.assert_allclose(speech.samples, whole.samples, rtol=0, atol=1e-5)
            else:
                assert np.array_equal(getattr(speech, name), getattr(whole, name))
        assert speech.finish_reason == ("given" if part.given else whole.finish_reason)


NAMES = ("semantic_tokens", "coarse_tokens", "fine_tokens", "samples")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precisions_on_a_cpu(small: Checkpoint, dtype: torch.dtype) -> None:
    """Also where one rounding more or less changes tokens; see tests/kernels/test_cpu.py."""
    requests = random_requests(small, 12, longest=30, seed=3)
    engine = make_engine(small, dtype=dtype)
    expected = one_by_one(engine, requests)
    together = run_all(engine, requests)
    assert all(same(a, b) for a, b in zip(together, expected, strict=True))


def test_with_triton(small: Checkpoint) -> None:
    requests = random_requests(small, 4, longest=2, seed=2)
    engine = make_engine(small, impl="triton", page_size=16, max_batch_size=4)
    expected = one_by_one(make_engine(small), requests)
    assert all(same(a, b) for a, b in zip(run_all(engine, requests), expected, strict=True))


def test_a_shared_prompt_is_stored_once(small: Checkpoint) -> None:
    """Four readings of one text in one voice: the pages that their prompts fill are the same."""
    text, voice = "Hello there", small.voice(17)
    params = [
        GenerationParams(seed=i, min_eos_p=0, max_semantic_tokens=12, temperature=1.0)
        for i in range(4)
    ]
    requests = [small.bark.request(text, voice, own) for own in params]
    expected = one_by_one(make_engine(small), requests)
    page_size = 4
    engine = make_engine(small, page_size=page_size, max_prefill_tokens=10**6)
    futures = [engine.submit(request) for request in requests]
    engine.step()  # all four prompts
    n_prompt = small.config.semantic_rules.max_input_semantic_length + 1
    full = (n_prompt - 1) // page_size
    own = -(-n_prompt // page_size) - full
    assert engine.stats().stages["semantic"].used_pages == full + 4 * own
    while engine.step():
        pass
    assert all(same(f.result(), e) for f, e in zip(futures, expected, strict=True))
    assert engine.used_pages == 0


def count_prefill(engine: Engine, request: Request) -> int:
    one_by_one(engine, [request])
    return engine.stats().stages["coarse"].prefill_tokens


def test_coarse_prompts_of_ten_seconds(narrow: Checkpoint) -> None:
    """Windows that have not moved are not run again: 499 semantic tokens are 25 windows."""
    request = narrow.bark.request(
        "Hello", None, GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=499)
    )
    tokens = count_prefill(make_engine(narrow), request)
    again = 14 * (257 + 630)
    assert tokens == 257 + again
    every_window = sum(257 + min(630, 60 * i) for i in range(25))
    assert (tokens, every_window) == (12_675, 18_545)
