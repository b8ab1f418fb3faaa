"""The loop on made-up stages: a long simulation, faults, cancelling and closing in every state."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import GenerationParams, Speech
from bark_fast.engine.engine import Engine
from bark_fast.engine.scheduler import Policy
from bark_fast.engine.utterance import Outcome, Utterance
from bark_fast.request import Request
from bark_fast.types import STAGES, Stage
from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import PAGES, alone, fake_engine, finish, make_request
from helpers.engines import same

# The long run


@pytest.mark.parametrize(
    ("policy", "depth", "n"), [("latency", 1, 10_000), ("throughput", 0, 2_000)]
)
def test_nothing_is_lost(small: Checkpoint, policy: Policy, depth: int, n: int) -> None:
    """Poisson arrivals, faster for a while than they can be served; a few are cancelled and a few
    fail. Whoever came first is not passed by for ever."""
    rng = np.random.default_rng(0)

    def fault(stage: str, tasks: Any) -> None:
        for task in tasks:
            sampling = getattr(task, "sampling", None)
            if sampling is not None and sampling.seed % 500 == 499:
                raise RuntimeError(f"bad luck in {stage}")

    engine = fake_engine(
        small.config, n_pages=PAGES, policy=policy, depth=depth, fault=fault, max_running=12
    )
    futures: list[Future[Speech]] = []
    ended: list[int] = []  # in this order
    step = 0
    start = time.process_time()
    while len(futures) < n or engine.has_work:
        rate = 3.0 if (step // 200) % 2 else 1.0
        for _ in range(min(n - len(futures), rng.poisson(rate))):
            seed = len(futures)
            future = engine.submit(make_request(small, seed), urgent=bool(seed % 3))
            future.add_done_callback(lambda _, seed=seed: ended.append(seed))
            futures.append(future)
        if rng.random() < 0.02 and futures:
            futures[int(rng.integers(len(futures)))].cancel()
        engine.step()
        step += 1
    seconds = time.process_time() - start
    assert engine.used_pages == 0
    stats = engine.stats()
    n_cancelled = sum(future.cancelled() for future in futures)
    failed = {i for i, f in enumerate(futures) if not f.cancelled() and f.exception() is not None}
    assert failed <= {i for i in range(n) if i % 500 == 499}
    assert stats.failed == len(failed)
    assert stats.cancelled == n_cancelled
    assert (stats.submitted, stats.active) == (n, 0)
    assert stats.finished == n - n_cancelled - len(failed)
    assert stats.preempted > 0
    assert all(s.waiting == s.used_pages == 0 for s in stats.stages.values())
    for seed in range(0, n, n // 40):
        if not futures[seed].cancelled() and seed not in failed:
            assert same(futures[seed].result(), alone(small, make_request(small, seed)))
    # Older ones go first: one ends at most so many places after its turn.
    spoken = [seed for seed in ended if not futures[seed].cancelled() and seed not in failed]
    turn = {seed: place for place, seed in enumerate(sorted(spoken))}
    # Short ones overtake long ones that are being spoken, three a step at most while a long one
    # takes its 130 steps; but no stream of them holds one up.
    most = max(place - turn[seed] for place, seed in enumerate(spoken))
    assert most < 3 * 130, most
    assert seconds < 60


# Faults


@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_is_one_utterances_own(small: Checkpoint, stage: str) -> None:
    requests = [make_request(small, seed) for seed in range(20, 32)]
    bad = 25
    frames = alone(small, requests[5]).fine_tokens.shape[1]

    def fault(at: str, tasks: Any) -> None:
        if at == stage and any(
            task.shape[1] == frames if stage == "codec" else task.sampling.seed == bad
            for task in tasks
        ):
            raise RuntimeError("on purpose")

    engine = fake_engine(small.config, n_pages=PAGES, fault=fault)
    futures = [engine.submit(request) for request in requests]
    finish(engine)
    assert engine.used_pages == 0
    for request, future in zip(requests, futures, strict=True):
        expected = alone(small, request)
        if stage == "codec" and expected.fine_tokens.shape[1] == frames:
            continue
        if request.seed == bad:
            with pytest.raises(RuntimeError, match="on purpose"):
                future.result(timeout=0)
        else:
            assert same(future.result(timeout=0), expected)
    assert isinstance(futures[5].exception(timeout=0), RuntimeError)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_makes_batches_smaller(
    small: Checkpoint, stage: str, error: type[Exception]
) -> None:
    largest = 0

    def fault(at: str, tasks: Any) -> None:
        nonlocal largest
        if at == stage:
            if len(tasks) > 2:
                raise error("too much")
            largest = max(largest, len(tasks))

    engine = fake_engine(small.config, n_pages=200, policy="throughput", fault=fault)
    requests = [make_request(small, seed) for seed in range(20, 36)]
    futures = [engine.submit(request) for request in requests]
    finish(engine)
    assert largest in (1, 2)
    for request, future in zip(requests, futures, strict=True):
        assert same(future.result(timeout=0), alone(small, request))
    assert engine.used_pages == 0


def test_out_of_memory_with_one_alone_fails_that_one(small: Checkpoint) -> None:
    def fault(at: str, tasks: Any) -> None:
        if at == "coarse" and any(task.sampling.seed == 23 for task in tasks):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    engine = fake_engine(small.config, n_pages=200, fault=fault)
    futures = [engine.submit(make_request(small, seed)) for seed in range(20, 28)]
    finish(engine)
    assert [f.exception(timeout=0) is not None for f in futures] == [
        seed == 23 for seed in range(20, 28)
    ]
    assert engine.used_pages == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_an_interrupt_loses_nothing(small: Checkpoint, depth: int) -> None:
    """Whoever steps by hand can press control-C and step on."""
    countdown = 12

    def fault(at: str, tasks: Any) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise KeyboardInterrupt

    engine = fake_engine(small.config, n_pages=PAGES, fault=fault, depth=depth)
    requests = [make_request(small, seed) for seed in range(20, 28)]
    futures = [engine.submit(request) for request in requests]
    with pytest.raises(KeyboardInterrupt):
        finish(engine)
    finish(engine)
    for request, future in zip(requests, futures, strict=True):
        assert same(future.result(timeout=0), alone(small, request))


@pytest.mark.parametrize("move", ["save", "restore"])
@pytest.mark.parametrize("error", [MemoryError, RuntimeError, KeyboardInterrupt])
def test_pages_that_cannot_be_moved(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch, move: str, error: type[BaseException]
) -> None:
    """Whoever loses the content of its pages fails; nobody goes on without it."""
    engine = fake_engine(small.config, n_pages=30, policy="latency", max_running=12)
    moved: list[int] = []
    for runner in (engine.runner.semantic, engine.runner.coarse):
        original = getattr(runner, move)

        def spoil(*arguments: Any, original: Any = original) -> Any:
            moved.append(1)
            if len(moved) in (2, 5):
                raise error("on purpose")
            return original(*arguments)

        monkeypatch.setattr(runner, move, spoil)
    requests = [make_request(small, seed) for seed in range(20, 40)]
    futures = [engine.submit(request) for request in requests]
    while engine.has_work:
        try:
            finish(engine)
        except KeyboardInterrupt:
            assert error is KeyboardInterrupt
    assert len(moved) > 5
    assert engine.used_pages == 0
    failed = 0
    for request, future in zip(requests, futures, strict=True):
        if future.exception(timeout=0) is None:
            assert same(future.result(), alone(small, request))
        else:
            failed += 1
    assert failed <= 2


# Parts of the way


def given_request(small: Checkpoint, seed: int) -> Request:
    """Return the request of the same utterance from its semantic tokens on."""
    whole = make_request(small, seed)
    tokens = alone(small, whole).semantic_tokens
    return small.bark.token_request(tokens, None, GenerationParams(seed=seed))


def run(small: Checkpoint, request: Request) -> tuple[Speech, Engine]:
    engine = fake_engine(small.config, n_pages=PAGES)
    future = engine.submit(request)
    finish(engine)
    assert engine.used_pages == 0
    return future.result(timeout=0), engine


@pytest.mark.parametrize(
    ("given", "last"), [*((False, last) for last in STAGES), *((True, last) for last in STAGES[1:])]
)
def test_from_a_stage_to_a_stage(small: Checkpoint, given: bool, last: Stage) -> None:
    whole = alone(small, make_request(small, 30))
    request = given_request(small, 30) if given else make_request(small, 30)
    speech, engine = run(small, replace(request, last_stage=last))
    n = STAGES.index(last) + 1
    made = {"semantic": "semantic_tokens", "coarse": "coarse_tokens", "fine": "fine_tokens"}
    for stage, name in made.items():
        found, expected = getattr(speech, name), getattr(whole, name)
        assert expected.size
        if stage in STAGES[:n]:
            assert np.array_equal(found, expected)
        else:
            assert (found.shape, found.dtype) == ((len(expected), 0), np.int64)
    assert len(speech.samples) == (len(whole.samples) if last == "codec" else 0)
    assert speech.samples.dtype == np.float32
    assert speech.finish_reason == ("given" if given else whole.finish_reason)
    assert list(speech.timings) == list(STAGES[given:n])
    assert list(replace(request, last_stage=last).stages) == list(STAGES[given:n])
    stats = engine.stats()
    assert (stats.finished, stats.active) == (1, 0)
    assert [name for name, stage in stats.stages.items() if stage.batches] == list(STAGES[given:n])
    assert stats.audio_s == speech.duration_s
    assert bool(stats.time_to_audio_s) == (last == "codec")


def test_an_utterance_that_cannot_begin(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine(small.config, n_pages=PAGES)
    begin = Utterance.begin

    def begin_or_fail(utterance: Utterance) -> Outcome:
        if utterance.request.given and utterance.request.seed == 31:
            raise RuntimeError("on purpose")
        return begin(utterance)

    monkeypatch.setattr(Utterance, "begin", begin_or_fail)
    futures = [engine.submit(given_request(small, seed)) for seed in (30, 31, 32)]
    finish(engine)
    assert [future.exception(timeout=0) is None for future in futures] == [True, False, True]
    assert (engine.stats().failed, engine.used_pages) == (1, 0)


# Cancelling and closing


@pytest.mark.parametrize("kind", ["whole", "semantic", "given"])
@pytest.mark.parametrize("depth", [0, 1])
def test_cancelling_in_every_state(small: Checkpoint, depth: int, kind: str) -> None:
    """One more step before each cancellation, until there is nothing left to cancel."""
    request, other = make_request(small, 30), make_request(small, 33)
    if kind == "semantic":
        seed = next(
            i for i in range(999) if len(alone(small, make_request(small, i)).semantic_tokens) > 30
        )
        request = replace(make_request(small, seed), last_stage="semantic")
    elif kind == "given":
        request = given_request(small, 30)
    expected = alone(small, other)
    for n_steps in range(1000):
        engine = fake_engine(small.config, n_pages=PAGES, depth=depth, steps=3)
        future, bystander = engine.submit(request), engine.submit(other)
        for _ in range(n_steps):
            engine.step()
        if not engine.cancel(future):
            break
        finish(engine)
        assert engine.used_pages == 0
        with pytest.raises(CancelledError):
            future.result(timeout=0)
        assert same(bystander.result(timeout=0), expected)
        stats = engine.stats()
        assert (stats.cancelled, stats.finished, stats.active) == (1, 1, 0)
    assert n_steps > 10


@pytest.mark.parametrize("depth", [0, 1])
def test_giving_up_everything_in_every_state(small: Checkpoint, depth: int) -> None:
    for n_steps in range(60):
        engine = fake_engine(small.config, n_pages=PAGES, depth=depth, steps=3)
        futures = [engine.submit(make_request(small, seed)) for seed in range(20, 26)]
        for _ in range(n_steps):
            engine.step()
        engine.fail_all(RuntimeError("the end"))
        assert engine.used_pages == 0
        assert not engine.has_work
        for future in futures:
            error = future.exception(timeout=0)
            assert error is None or str(error) == "the end"
        late = engine.submit(make_request(small, 30))
        finish(engine)
        assert late.result(timeout=0).seed == 30


# Policy


def test_someone_who_waits_makes_it_latency(small: Checkpoint) -> None:
    engine = fake_engine(small.config, n_pages=PAGES)
    engine.submit(make_request(small, 30))
    engine.step()
    assert engine.policy == "throughput"
    engine.submit(make_request(small, 31), urgent=True)
    engine.step()
    assert engine.policy == "latency"
    finish(engine)
    assert engine.policy == "throughput"
