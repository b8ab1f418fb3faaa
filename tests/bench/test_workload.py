from __future__ import annotations

import pytest

from bench.commands.serve import poisson_arrivals
from bench.harness.workload import Utterance, batch_sizes_to_try, mixed_utterances, plan_batches


def utterances(*lengths: int, voices: str = "") -> list[Utterance]:
    return [
        Utterance("x", voices[i] if voices else None, length) for i, length in enumerate(lengths)
    ]


def test_batches_are_of_alike_lengths_shortest_first() -> None:
    assert plan_batches(utterances(30, 200, 40, 190), 2) == [[2, 0], [1, 3]]


def test_what_is_left_over_is_the_shortest_batch() -> None:
    assert plan_batches(utterances(10, 30, 20), 2) == [[0], [1, 2]]


def test_a_batch_has_one_voice() -> None:
    batches = plan_batches(utterances(1, 2, 3, 4, voices="abab"), 8)
    assert sorted(map(sorted, batches)) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
def test_every_request_is_in_one_batch(batch_size: int) -> None:
    requests = mixed_utterances(40, n_voices=3, seed=1)
    batches = plan_batches(requests, batch_size)
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    assert max(map(len, batches)) <= batch_size
    assert all(len({requests[i].voice for i in batch}) == 1 for batch in batches)


def test_only_sizes_that_differ_are_tried() -> None:
    assert batch_sizes_to_try(utterances(*[9] * 5), [1, 2, 4, 8, 16]) == [5, 4, 2, 1]
    assert batch_sizes_to_try(utterances(1, 2, 3, voices="aab"), [1, 2, 4]) == [2, 1]


def test_mixed_requests_are_the_same_every_time() -> None:
    first = mixed_utterances(16, seed=3)
    assert first == mixed_utterances(16, seed=3)
    assert first != mixed_utterances(16, seed=4)
    assert all(30 <= u.n_tokens <= 200 for u in first)
    assert [u.voice is None for u in first] == [True, False] * 8
    assert all(u.voice is None for u in mixed_utterances(4, n_voices=1))


def test_arrivals() -> None:
    arrivals = poisson_arrivals(5.0, seconds=200.0, most=10_000, seed=0)
    assert arrivals == poisson_arrivals(5.0, seconds=200.0, most=10_000, seed=0)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] == 0
    assert arrivals[-1] <= 200
    assert len(arrivals) == pytest.approx(1000, rel=0.1)
    # Twice the rate is the same arrivals in half the time.
    faster = poisson_arrivals(10.0, seconds=100.0, most=10_000, seed=0)
    assert faster == pytest.approx([t / 2 for t in arrivals])
    assert len(poisson_arrivals(5.0, seconds=200.0, most=7, seed=0)) == 7
    assert len(poisson_arrivals(1e-9, seconds=1.0, most=7, seed=0)) == 2
