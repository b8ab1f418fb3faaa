"""Counters and the snapshot that users read."""

from __future__ import annotations

import time

import pytest

from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import PAGES, fake_engine, finish, make_request


def test_statistics(small: Checkpoint) -> None:
    engine = fake_engine(small.config, n_pages=PAGES, max_running=4)
    before = engine.stats()
    assert before.time_to_audio_s == {}
    assert before.audio_s_per_s == 0
    futures = [engine.submit(make_request(small, seed)) for seed in range(20, 40)]
    assert engine.stats().stages["semantic"].waiting == 20
    engine.step()
    during = engine.stats()
    assert during.active == 20
    assert during.stages["semantic"].used_pages > 0
    assert 0 < during.stages["semantic"].waiting <= 20
    finish(engine)
    stats = engine.stats()
    speeches = [future.result() for future in futures]
    assert stats.audio_s == pytest.approx(sum(speech.duration_s for speech in speeches))
    n_semantic = sum(len(speech.semantic_tokens) for speech in speeches)
    assert stats.stages["semantic"].tokens == n_semantic
    assert stats.stages["coarse"].tokens == sum(s.coarse_tokens.size for s in speeches)
    assert stats.stages["codec"].tokens == sum(s.fine_tokens.shape[1] for s in speeches)
    assert stats.stages["semantic"].utterances_a_batch <= 4
    assert 0 < stats.time_to_audio_s["p50"] <= stats.time_to_audio_s["p95"]
    assert stats.time_to_audio_s["p95"] <= stats.time_to_audio_s["max"]
    assert stats.busy_s > 0
    assert all(s.tokens_per_s > 0 for s in stats.stages.values())
    start = time.thread_time()
    for _ in range(1000):
        engine.stats()
    assert time.thread_time() - start < 1
