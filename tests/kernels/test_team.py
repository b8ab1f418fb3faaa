"""The native kernels' threads: nothing is lost, done twice, or waited for in vain."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from bark_fast import kernels
from bark_fast.kernels.cpu.openmp import runtime
from helpers.kernels import randn
from helpers.native_library import whole_vectors


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    with whole_vectors():
        yield


def own_threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def test_a_team_ends_with_the_thread_that_it_works_for() -> None:
    weight = kernels.pack_weight(randn(2000, 64), impl="native")
    x = randn(50, 64)
    found: list[set[str]] = []

    def work() -> None:
        torch.get_num_threads()  # the first call in a thread sets the number itself
        # Not torch.set_num_threads: the next new thread would have as many.
        for threads in (3, 1, 4):
            runtime().omp_set_num_threads(threads)
            kernels.fused_linear(x, weight, impl="native")
            found.append(own_threads())

    before = own_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [len(threads - before) for threads in found] == [3, 1, 4]  # it and its workers
    deadline = time.monotonic() + 60  # Python's thread ends before the system's
    while (found[0] | found[2]) - before & own_threads():
        assert time.monotonic() < deadline, "threads are left over"
        time.sleep(0.01)


def test_teams_come_and_go() -> None:
    """Workers that are sent home as they arrive hear of it."""
    weight = kernels.pack_weight(randn(640, 32, seed=1), impl="native")
    x = randn(9, 32, seed=2)
    expected = kernels.fused_linear(x, weight, impl="native")
    found = []

    def work() -> None:
        torch.get_num_threads()
        for i in range(300):
            runtime().omp_set_num_threads(1 + i % 4)
            found.append(torch.equal(kernels.fused_linear(x, weight, impl="native"), expected))

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(timeout=120)
        assert not thread.is_alive(), "a thread waits for ever"
    assert len(found) == 900
    assert all(found)


def test_many_teams_at_once() -> None:
    """More threads than cores, which the system puts aside at any moment: nothing is lost, done
    twice or waited for in vain."""
    weight = kernels.pack_weight(randn(640, 96, seed=1), impl="native")
    x, norm = randn(40, 96, seed=2), (randn(96), None)
    expected = kernels.fused_linear(x, weight, norm=norm, impl="native")
    right: list[bool] = []

    def work(threads: int) -> None:
        torch.get_num_threads()
        runtime().omp_set_num_threads(threads)
        outs = []

        def step() -> None:
            outs[:] = [kernels.fused_linear(x, weight, norm=norm, impl="native") for _ in range(5)]

        repeat = kernels.record_native(step)
        for _ in range(60):
            for out in outs:
                out.fill_(math.nan)
            repeat()
            right.extend(torch.equal(out, expected) for out in outs)

    callers = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 5, 8, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
        assert not caller.is_alive(), "a thread waits for ever"
    assert len(right) == len(callers) * 60 * 5
    assert all(right)


def test_a_fork_has_a_team_of_its_own() -> None:
    weight = kernels.pack_weight(randn(640, 96, seed=1), impl="native")
    x = randn(40, 96, seed=2)
    expected = kernels.fused_linear(x, weight, impl="native")
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(60)
            equal = torch.equal(kernels.fused_linear(x, weight, impl="native"), expected)
            status = 0 if equal else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_thread_can_give_torchs_workers_back() -> None:
    """... and go on: they come again when they are needed."""
    x = torch.ones(600, 600, device="cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        kernels.release_threads()
        others = own_threads()  # of which some may end meanwhile
        x.exp()
        workers = own_threads() - others
        assert len(workers) == 2
        kernels.release_threads()
        assert not workers & own_threads()
        x.exp()
        assert len(own_threads() - others) == 2
    finally:
        torch.set_num_threads(before)
