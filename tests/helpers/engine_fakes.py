"""Runners that draw made-up tokens at once, to try the engine's loop and policy alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bark_fast import GenerationParams, Speech
from bark_fast.checkpoint.config import Config
from bark_fast.engine.decoder import Collect, StepOutput
from bark_fast.engine.engine import Engine
from bark_fast.engine.graphs import Step
from bark_fast.engine.kv_cache import PagePool
from bark_fast.engine.options import EngineConfig
from bark_fast.engine.runner import Runner
from bark_fast.engine.scheduler import Phase, Policy
from bark_fast.request import Request
from bark_fast.stages.causal import CausalTask
from bark_fast.stages.fine import FineTask
from bark_fast.types import Stage
from helpers.checkpoints import Checkpoint

Fault = Callable[[str, Sequence[Any]], None]
"""Called with the stage and its tasks (codec: codes) before they run; raises to make them fail."""


class FakeCausal:
    """Draws ids that depend on the task's seed and place alone, the end token among them. Checks
    that pages are wide enough and nobody else's."""

    def __init__(self, stage: str, config: Config, pool: PagePool, fault: Fault) -> None:
        self.stage, self._config, self._pool, self._fault = stage, config, pool, fault
        self._content: dict[int, object] = {}  # whose keys and values a page holds

    def _draw(self, task: CausalTask) -> StepOutput:
        place = len(task.tokens)
        if (
            self.stage == "semantic"
            and random.Random(task.sampling.seed * 1000 + place).random() < 0.03
        ):
            return StepOutput([], ended=True)
        first = self._config.semantic_rules.semantic_vocab_size if self.stage == "coarse" else 0
        return StepOutput([first + (task.sampling.seed + place) % 50], ended=False)

    def prefill(self, tasks: list[CausalTask], pages: list[list[int]]) -> Collect:
        self._fault(self.stage, tasks)
        for task, own in zip(tasks, pages, strict=True):
            assert len(own) * self._pool.page_size >= task.length
            self._content.update(dict.fromkeys(own[self._last(task) :], task))
        return lambda: [self._draw(task) for task in tasks]

    def decode(self, tasks: list[CausalTask], pages: list[list[int]], n_steps: int) -> Collect:
        self._fault(self.stage, tasks)
        written = [p for t, own in zip(tasks, pages, strict=True) for p in own[self._last(t) :]]
        assert len(set(written)) == len(written), "two tasks write to one page"
        for task, own in zip(tasks, pages, strict=True):
            # The first pages of a prompt may be another's, who has the same.
            first = len(task.prompt[0]) // self._pool.page_size
            held = own[first : self._pool.pages_for(task.cached)]
            assert all(self._content[page] is task for page in held), "not its own content"
            self._content.update(dict.fromkeys(own[self._last(task) :], task))

        def collect() -> list[StepOutput]:
            results = []
            for task in tasks:
                tokens: list[int] = []
                ended = False
                before = list(task.tokens)
                while not ended and len(tokens) < min(n_steps, task.limit - len(before)):
                    one = self._draw(task)
                    tokens += one.tokens
                    task.tokens.extend(one.tokens)
                    ended = one.ended
                task.tokens[:] = before
                results.append(StepOutput(tokens, ended))
            return results

        return collect

    def _last(self, task: CausalTask) -> int:
        return task.cached // self._pool.page_size

    def run_ahead(self, tasks: list[CausalTask], pages: list[list[int]], n_steps: int) -> None: ...

    def warm_ups(self) -> Sequence[Callable[[], object]]:
        return ()

    def save(self, pages: list[int]) -> Any:
        return [self._content.get(page) for page in pages]

    def restore(self, pages: list[int], saved: Any) -> None:
        self._content.update(zip(pages, saved, strict=False))


class FakeFine:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def run(self, tasks: list[FineTask]) -> None:
        self._fault("fine", tasks)
        assert len({task.codebook for task in tasks}) == 1
        for task in tasks:
            n = len(task.sample_positions())
            task.fill(torch.full((n,), task.codebook))

    def warm_ups(self) -> Sequence[Callable[[], object]]:
        return ()


class FakeCodec:
    def __init__(self, hop_length: int, fault: Fault) -> None:
        self._hop, self._fault = hop_length, fault

    def run(self, codes: list[Any]) -> list[torch.Tensor]:
        self._fault("codec", codes)
        return [torch.zeros(own.shape[1] * self._hop) for own in codes]

    def warm_ups(self) -> Sequence[Callable[[], object]]:
        return ()


def fake_config(
    *,
    page_size: int = 8,
    max_running: int = 16,
    policy: Policy | None = None,
    depth: int = 0,
    steps: int = 8,
) -> EngineConfig:
    """Return the configuration of an engine on fakes; `depth` is how many batches may be under way,
    as on a GPU."""
    return EngineConfig(
        limits={
            Phase.SEMANTIC_PREFILL: 256,
            Phase.SEMANTIC_DECODE: max_running,
            Phase.COARSE_PREFILL: 256,
            Phase.COARSE_DECODE: max_running,
            Phase.FINE: 4,
            Phase.CODEC: 1000,
        },
        max_running=max_running,
        steps={"semantic": steps, "coarse": steps},
        page_sizes={"semantic": page_size, "coarse": page_size},
        depth=depth,
        policy=policy,
    )


def fake_engine(
    config: Config,
    *,
    n_pages: int,
    page_size: int = 8,
    fault: Fault = lambda stage, tasks: None,
    **about: Any,
) -> Engine:
    """Return an engine on fakes; `about` is for `fake_config`."""
    stages: tuple[Stage, ...] = ("semantic", "coarse")
    pools = {stage: PagePool(n_pages, page_size) for stage in stages}
    runner = Runner(
        semantic=FakeCausal("semantic", config, pools["semantic"], fault),
        coarse=FakeCausal("coarse", config, pools["coarse"], fault),
        fine=FakeFine(fault),
        codec=FakeCodec(config.codec.hop_length, fault),
        config=fake_config(page_size=page_size, **about),
        device=torch.device("cpu"),
    )
    return Engine(runner, pools, config)


class FakeGraphs:
    """Repeats a step as a CUDA graph does: it is run once to see what it does, on rows that must
    not mind, and may be repeated only on the tensors that it was recorded on."""

    def __init__(self) -> None:
        self.captured = 0
        self.repeated = 0

    def capture(self, step: Step) -> Step:
        self.captured += 1
        step()

        def repeat() -> None:
            self.repeated += 1
            step()

        return repeat


PAGES = 40  # about five utterances of the small model, in pages of 8


def make_request(small: Checkpoint, seed: int, *, longest: int = 40, text: str = "a") -> Request:
    params = GenerationParams(seed=seed, max_semantic_tokens=1 + seed % longest)
    return small.bark.request(text, None, params)


def finish(engine: Engine, *, at_most: int = 100_000) -> None:
    for _ in range(at_most):
        if not engine.step():
            return
    raise AssertionError("the engine does not come to an end")


def alone(small: Checkpoint, request: Request) -> Speech:
    engine = fake_engine(small.config, n_pages=PAGES, max_running=1)
    future = engine.submit(request)
    finish(engine)
    return future.result(timeout=0)
