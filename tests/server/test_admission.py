"""Who may wait, and how long others are told to wait, by a clock of the test's."""

from __future__ import annotations

import pytest

from bark_fast.server.admission import Admission
from bark_fast.server.errors import ApiError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock, *, max_requests: int = 3, max_audio_s: float = 100.0) -> Admission:
    return Admission(max_requests=max_requests, max_audio_s=max_audio_s, clock=clock)


def refusal(waiting: Admission, audio_s: float) -> ApiError:
    with pytest.raises(ApiError) as refused:
        waiting.admit(audio_s)
    assert refused.value.status == 429
    return refused.value


def test_requests_are_bounded() -> None:
    waiting = admission(Clock())
    tickets = [waiting.admit(1.0) for _ in range(3)]
    assert "3 requests are waiting" in refusal(waiting, 1.0).message
    tickets[1].set_aside()
    tickets[1].set_aside()  # twice is once
    waiting.admit(1.0)
    refusal(waiting, 1.0)
    tickets[1].take_up()  # it has begun, and is not turned away
    assert (waiting.n_requests, waiting.audio_s) == (4, 4.0)


def test_audio_is_bounded_unless_a_request_is_alone() -> None:
    waiting = admission(Clock())
    ticket = waiting.admit(150.0)
    assert "150 s of speech" in refusal(waiting, 1.0).message
    ticket.made(60.0)
    waiting.admit(10.0)
    refusal(waiting, 1.0)


def test_what_is_made_is_not_waited_for() -> None:
    waiting = admission(Clock())
    ticket = waiting.admit(0.3)
    for _ in range(4):
        ticket.made(0.1)  # more than was estimated, and not exact in binary
        assert waiting.audio_s >= 0
    ticket.set_aside()
    assert (waiting.n_requests, waiting.audio_s) == (0, 0)


@pytest.mark.parametrize(
    ("made_s", "expected"),
    [(0.0, 90), (45.0, 20), (10.0, 90), (1e-9, 120), (1000.0, 1)],
)
def test_when_to_come_again(made_s: float, expected: int) -> None:
    """After 10 s in which so much was made; 90 s are waiting, at the rate of real time before."""
    clock = Clock()
    waiting = admission(clock)
    waiting.admit(90.0)
    other = waiting.admit(0.0)
    if made_s:
        other.made(made_s)
        clock.now = 10.0
    error = refusal(waiting, 20.0)
    assert error.headers == {"Retry-After": str(expected)}
    assert f"try again in {expected} s" in error.message


def test_what_was_made_long_ago_is_forgotten() -> None:
    clock = Clock()
    waiting = admission(clock)
    ticket = waiting.admit(0.0)
    ticket.made(1000.0)
    clock.now = 61.0
    assert waiting.rate() == 1.0
    for _ in range(10_000):  # and kept no longer, whether anyone asks for the rate or not
        clock.now += 1.0
        ticket.made(0.5)
    assert len(waiting._recent) <= 61
    assert waiting.rate() == pytest.approx(0.5, rel=0.05)
