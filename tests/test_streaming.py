"""The plan of a long text: seeds, voices, and how many sentences may be under way."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from bark_fast import GenerationParams, InputError, Speech
from bark_fast.request import Request, RequestBuilder
from bark_fast.streaming import StreamPlan, speak
from helpers.checkpoints import Checkpoint

TEXT = "One is here. Two is here. Three is here. Four is here. Five is here. Six is here."


@pytest.fixture(scope="module")
def builder(small: Checkpoint) -> RequestBuilder:
    return small.bark.requests


def plan_of(
    builder: RequestBuilder, voice: Any = None, text: str = TEXT, **params: Any
) -> StreamPlan:
    return StreamPlan(builder, text, voice, GenerationParams(**params), "en")


def spoken(small: Checkpoint, n_semantic: int, seed: int = 0) -> Speech:
    """Return a made-up speech of so many semantic tokens."""
    voice = small.voice(n_semantic, seed)
    return Speech(
        samples=np.zeros(8, dtype=np.float32),
        sample_rate_hz=8_000,
        text="",
        semantic_tokens=voice["semantic_prompt"],
        coarse_tokens=voice["coarse_prompt"],
        fine_tokens=voice["fine_prompt"],
        timings={},
        finish_reason="end",
        seed=seed,
    )


def begin(plan: StreamPlan, n_waiting: int) -> Request:
    request = plan.peek(n_waiting)
    assert request is not None
    plan.advance()
    return request


def test_each_sentence_has_the_next_seed(small: Checkpoint, builder: RequestBuilder) -> None:
    plan = plan_of(builder, small.voice(17), seed=2**64 - 2, temperature=0.3, max_duration_s=0.2)
    requests = [begin(plan, 0) for _ in plan.pieces]
    assert [r.text for r in requests] == plan.pieces == [f"{s}." for s in TEXT[:-1].split(". ")]
    assert [r.seed for r in requests] == [2**64 - 2, 2**64 - 1, 0, 1, 2, 3]
    assert {r.semantic.temperature for r in requests} == {0.3}
    assert plan.peek(0) is None


def test_a_drawn_seed_is_the_first_of_all(
    builder: RequestBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.randbits", lambda n_bits: 77)
    plan = plan_of(builder)
    monkeypatch.undo()
    assert [begin(plan, 0).seed for _ in range(3)] == [77, 78, 79]


def test_looking_begins_nothing(builder: RequestBuilder) -> None:
    plan = plan_of(builder, seed=1)
    assert plan.peek(0) == plan.peek(0)
    assert plan.n_begun == 0
    plan.advance()
    assert plan.n_begun == 1


def test_four_at_a_time_in_a_known_voice(small: Checkpoint, builder: RequestBuilder) -> None:
    plan = plan_of(builder, small.voice(17))
    assert plan.peek(3) is not None
    assert plan.peek(4) is None


def test_the_first_is_alone_on_a_cpu(small: Checkpoint, builder: RequestBuilder) -> None:
    """Sentences that run together share its cores: the first comes as soon as if it were all."""
    assert small.bark.device.type == "cpu"
    plan = small.bark.stream_plan(TEXT, small.voice(17), None, "en")
    for together in (1, 2, 4, 4):
        assert plan.peek(together - 1) is not None
        assert plan.peek(together) is None
        plan.advance()
        plan.heard(spoken(small, 10))


@pytest.mark.parametrize("pause_s", [-0.1, 61, float("nan"), "1", None])
def test_a_pause_is_some_seconds(small: Checkpoint, pause_s: Any) -> None:
    with pytest.raises(InputError, match="pause_s must be from 0 to 60 seconds, got"):
        small.bark.stream(TEXT, pause_s=pause_s)


def test_one_at_a_time_until_there_is_a_voice(small: Checkpoint, builder: RequestBuilder) -> None:
    """The first speech that is long enough is the voice of all that come after it."""
    plan = plan_of(builder, seed=1)
    assert begin(plan, 0).voice is None
    assert plan.peek(1) is None
    plan.heard(spoken(small, 1))  # too short to be a voice
    assert begin(plan, 0).voice is None
    assert plan.peek(1) is None
    first, later = spoken(small, 10), spoken(small, 12, seed=1)
    plan.heard(first)
    for n_waiting in range(4):
        request = begin(plan, n_waiting)
        assert request.voice is not None
        assert np.array_equal(request.voice.semantic_prompt, first.semantic_tokens)
        assert np.array_equal(request.voice.fine_prompt, first.fine_tokens)
        plan.heard(later)  # which changes nothing
    assert plan.n_begun == len(plan.pieces)


def test_a_given_voice_stays(small: Checkpoint, builder: RequestBuilder) -> None:
    voice = small.voice(17)
    plan = plan_of(builder, voice)
    begin(plan, 0)
    plan.heard(spoken(small, 10))
    request = begin(plan, 0)
    assert request.voice is not None
    assert np.array_equal(request.voice.semantic_prompt, voice["semantic_prompt"])


def test_sentences_are_split_to_what_one_utterance_may_last(builder: RequestBuilder) -> None:
    whole = plan_of(builder, max_semantic_tokens=100).pieces
    parts = plan_of(builder, max_semantic_tokens=8).pieces
    assert len(whole) == 6 < len(parts)
    assert " ".join(parts) == " ".join(whole)


# Saying it


class Submit:
    """Takes requests and says them when asked to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.futures: list[Future[Speech]] = []

    def __call__(self, request: Request, *, progress: Any, urgent: bool) -> Future[Speech]:
        assert urgent, "someone listens"
        assert progress is None  # no bar was asked for
        self.requests.append(request)
        self.futures.append(Future())
        return self.futures[-1]


def test_the_next_are_under_way_while_one_is_listened_to(
    small: Checkpoint, builder: RequestBuilder
) -> None:
    submit = Submit()
    speeches = speak(plan_of(builder, seed=1), submit, progress=False)
    made = [spoken(small, 10, seed) for seed in range(6)]

    class Maker(Submit):
        """Says a request as soon as it comes."""

        def __call__(self, request: Request, *, progress: Any, urgent: bool) -> Future[Speech]:
            future = super().__call__(request, progress=progress, urgent=urgent)
            future.set_result(made[len(self.futures) - 1])
            return future

    maker = Maker()
    speeches = speak(plan_of(builder, seed=1), maker, progress=False)
    assert maker.requests == [], "nothing is done before the first is asked for"
    under_way = []
    for speech, expected in zip(speeches, made, strict=True):
        assert speech.seed == expected.seed
        assert np.array_equal(speech.semantic_tokens, expected.semantic_tokens)
        under_way.append(len(maker.requests))
    assert under_way == [5, 6, 6, 6, 6, 6]


def test_who_stops_listening_cancels_the_others(small: Checkpoint, builder: RequestBuilder) -> None:
    submit = Submit()
    speeches = speak(plan_of(builder, small.voice(17)), submit, progress=False)

    def say_the_first() -> Speech:
        return next(speeches)

    original = Future.result
    first = spoken(small, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Future, "result", lambda future: first)
        assert np.array_equal(say_the_first().semantic_tokens, first.semantic_tokens)
    assert Future.result is original
    speeches.close()  # type: ignore[attr-defined]
    assert len(submit.futures) == 5
    assert [future.cancelled() for future in submit.futures] == [False, True, True, True, True]


def test_a_failure_cancels_the_others(small: Checkpoint, builder: RequestBuilder) -> None:
    class Failing(Submit):
        def __call__(self, request: Request, *, progress: Any, urgent: bool) -> Future[Speech]:
            future = super().__call__(request, progress=progress, urgent=urgent)
            if len(self.futures) == 1:
                future.set_exception(RuntimeError("on purpose"))
            return future

    submit = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        next(speak(plan_of(builder, small.voice(17)), submit, progress=False))
    assert [future.cancelled() for future in submit.futures] == [False, True, True, True]
