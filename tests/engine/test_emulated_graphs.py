"""Captured steps, prompts and fine passes on an emulated GPU: its work is repeated, no Python."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bark_fast import Speech
from bark_fast.engine.decoder import Decoder
from bark_fast.engine.engine import Engine
from bark_fast.models.transfer import mark, to_device
from bark_fast.request import Request
from bark_fast.stages.sampling import SamplingParams
from bark_fast.stages.semantic import SemanticTask, build_prompt
from helpers.checkpoints import Checkpoint
from helpers.emulated_gpu import (
    GPU,
    CaptureError,
    EmulatedGPU,
    HostSyncError,
    emulated_gpu,
)
from helpers.emulated_graphs import EmulatedGraphs
from helpers.engines import gib_for, make_engine, run_all, same


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGPU]:
    with emulated_gpu(monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each batch of steps, whether they had been enqueued ahead."""
    seen: list[bool] = []
    take = Decoder._take_ahead

    def watched(self: Decoder, *about: Any) -> Any:
        block = take(self, *about)
        seen.append(block is not None)
        return block

    monkeypatch.setattr(Decoder, "_take_ahead", watched)
    return seen


def graphed(small: Checkpoint, gpu: EmulatedGPU, **options: Any) -> tuple[Engine, EmulatedGraphs]:
    graphs = EmulatedGraphs()
    with gpu.lenient():
        engine = make_engine(
            small, impl="torch", device=GPU, graphs=graphs, max_codec_frames=128, **options
        )
    return engine, graphs


def test_one_after_another(
    small: Checkpoint,
    gpu: EmulatedGPU,
    requests: list[Request],
    alone: list[Speech],
    taken: list[bool],
) -> None:
    """Nothing else is under way then, so that steps are enqueued ahead; voices and lengths vary."""
    engine, graphs = graphed(small, gpu, max_batch_size=1, steps_per_look=5)
    for request, expected in list(zip(requests, alone, strict=True))[:8]:
        assert same(run_all(engine, [request])[0], expected)
    assert sum(taken) > 10  # a coarse window has no more steps
    assert graphs.repeated > 5 * len(graphs.captured)


def test_together_with_cancelling(
    small: Checkpoint,
    gpu: EmulatedGPU,
    requests: list[Request],
    alone: list[Speech],
    taken: list[bool],
) -> None:
    """Pages are short and change hands, and some give up at random moments."""
    engine, _ = graphed(
        small, gpu, max_batch_size=6, page_size=8, steps_per_look=2,
        kv_cache_gib=gib_for(small, 1.6, page_size=8),
    )  # fmt: skip
    rng = random.Random(3)
    futures = [engine.submit(request) for request in requests[:10]]
    while engine.step():
        if rng.random() < 0.05:
            rng.choice(futures).cancel()
    assert engine.stats().preempted > 0
    assert True in taken
    assert False in taken
    assert engine.used_pages == 0
    ended = [i for i, future in enumerate(futures) if not future.cancelled()]
    assert 3 < len(ended) < 10
    assert all(same(futures[i].result(), alone[i]) for i in ended)


def test_what_steps_ahead_serve(small: Checkpoint, gpu: EmulatedGPU, taken: list[bool]) -> None:
    """The same rows in the same pages. An ended one may be missing; where one that runs has left,
    or pages or limits are others, the steps are run anew, with the same tokens."""
    with gpu.lenient():
        engine, _ = graphed(small, gpu, max_batch_size=2, page_size=8, steps_per_look=4)
    decoder: Any = engine.runner.semantic
    rules = small.config.semantic_rules

    def tasks() -> list[SemanticTask]:
        prompt = build_prompt([5, 9, 7], [], rules)
        sampling = [SamplingParams(0.8, seed, min_new_tokens=100) for seed in (1, 2)]
        return [SemanticTask(sampling=own, prompt=prompt, limit=30) for own in sampling]

    def run(change: Callable[[list[SemanticTask], list[list[int]]], Any]) -> list[list[int]]:
        """Prefill, then three blocks of four; `change` comes before the second is asked for."""
        mine, pages = tasks(), [list(range(10)), list(range(10, 20))]
        with engine.runner.on_device():
            accept(mine, decoder.prefill(mine, pages)())
            for i in range(3):
                collect = decoder.decode(mine, pages, 4)
                decoder.run_ahead(mine, pages, 4)
                accept(mine, collect())
                if i == 0:
                    change(mine, pages)
        return [task.tokens for task in mine]

    def accept(mine: list[SemanticTask], outputs: list[Any]) -> None:
        for task, output in zip(mine, outputs, strict=True):
            task.accept(output.tokens, ended=output.ended)

    def move(mine: list[SemanticTask], pages: list[list[int]]) -> None:
        saved = decoder.save(pages[1])
        pages[1] = list(range(20, 30))
        decoder.restore(pages[1], saved)

    def leave(mine: list[SemanticTask], pages: list[list[int]]) -> None:
        del mine[1], pages[1]

    expected = run(lambda mine, pages: None)
    assert taken == [False, True, True]
    for change, served in (
        (move, [False, False, True]),
        (leave, [False, True, False]),  # once: its steps were under way
        (lambda mine, pages: setattr(mine[0], "limit", 29), [False, False, True]),
        (lambda mine, pages: pages[0].append(40), [False, True, True]),
    ):
        taken.clear()
        tokens = run(change)
        assert tokens == expected[: len(tokens)]
        assert taken == served


def test_a_graph_repeats_without_python(gpu: EmulatedGPU) -> None:
    x, out = torch.zeros(3, device=GPU), torch.zeros(3, device=GPU)
    ran = []

    def step() -> None:
        ran.append(1)
        out.copy_((x + 1).view(3) * torch.ones(3, device=GPU))

    graphs = EmulatedGraphs()
    repeat = graphs.capture(step)
    x.fill_(4.0)
    repeat()
    assert out.memory.tolist() == [5.0] * 3  # type: ignore[attr-defined]
    assert len(ran) == 2
    assert graphs.captured[0].n_launches == 4  # a view is none


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: to_device([1, 2], device=GPU),
        lambda x: torch.tensor([1]),
        lambda x: torch.empty(2, pin_memory=True),
        lambda x: mark(GPU),
        lambda x: x.copy_(torch.ones(2), non_blocking=True),
    ],
)
def test_what_cannot_be_captured(gpu: EmulatedGPU, step: Callable[[Any], Any]) -> None:
    x = torch.zeros(2, device=GPU)
    with gpu.lenient():
        step(x)
    with pytest.raises((CaptureError, HostSyncError)), gpu.lenient():
        EmulatedGraphs().capture(lambda: step(x))
