"""Batch sizes that are captured, and captured steps that are repeated."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from bark_fast import Speech
from bark_fast.engine.engine import Engine
from bark_fast.engine.graphs import CudaGraphRunner, capture_sizes, padded_size
from bark_fast.engine.warm_up import warm_up
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import FakeGraphs
from helpers.engines import make_engine, run_all, same


def all_graphs(engine: Engine) -> list[Any]:
    """What is captured: of each number of rows four steps and one."""
    runner: Any = engine.runner
    steps = 2 * list(range(len(capture_sizes(runner.config.max_running))))
    return [*runner.warm_ups(), *steps]


def test_captured_steps(small: Checkpoint, requests: list[Request], alone: list[Speech]) -> None:
    graphs = FakeGraphs()
    engine = make_engine(small, graphs=graphs, max_batch_size=20)
    together = run_all(engine, requests)
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    # Each size of each stage at most once.
    assert 2 < graphs.captured <= len(all_graphs(engine))
    assert graphs.repeated > 10 * graphs.captured


def test_warm_up_captures_all_sizes(small: Checkpoint, requests: list[Request]) -> None:
    graphs = FakeGraphs()
    engine = make_engine(small, graphs=graphs, max_batch_size=20)
    seen: list[tuple[int, int]] = []
    warm_up(engine, lambda done, total: seen.append((done, total)))
    n = len(engine.runner.warm_ups())
    assert seen == [(i, n) for i in range(1, n + 1)]
    n_graphs = len(all_graphs(engine))
    assert graphs.captured == n_graphs
    run_all(engine, requests[:10])
    assert graphs.captured == n_graphs


def test_all_graphs_are_captured_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share a pool, whose memory is safe to use again on its own stream alone."""
    used: list[Any] = []

    class Stream:
        def __init__(self, device: Any = None) -> None: ...

        def wait_stream(self, other: Stream) -> None: ...

    class Graph:
        def replay(self) -> None: ...

    def graph(graph: Graph, *, stream: Stream, **options: Any) -> Any:
        used.append(stream)
        return nullcontext()

    for name, fake in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": object,
        "current_stream": lambda device: Stream(),
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    runner = CudaGraphRunner(torch.device("cuda"))
    for _ in range(3):
        runner.capture(lambda: None)
    assert len(used) == 3
    assert len(set(map(id, used))) == 1


def test_capture_sizes() -> None:
    assert capture_sizes(1) == [1]
    assert capture_sizes(6) == [1, 2, 4, 6]
    assert capture_sizes(64) == [1, 2, 4, 8, 16, 32, 48, 64]
    assert [padded_size(capture_sizes(64), n) for n in (1, 3, 9, 17, 64)] == [1, 4, 16, 32, 64]
