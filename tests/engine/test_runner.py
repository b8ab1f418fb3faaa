"""The runner: whose turn the device is told of, and where prompts begin."""

from __future__ import annotations

from dataclasses import replace

import torch

from bark_fast import GenerationParams
from bark_fast.engine.runner import is_out_of_memory
from bark_fast.types import STAGES, Stage
from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import fake_engine
from helpers.engines import make_engine


def test_a_stage_is_announced_before_it_computes(small: Checkpoint) -> None:
    happened: list[tuple[str, str]] = []
    engine = fake_engine(
        small.config, n_pages=40, fault=lambda stage, tasks: happened.append(("ran", stage))
    )

    def announce(stage: Stage) -> None:
        happened.append(("before", stage))

    engine.runner = replace(engine.runner, before_stage=announce)
    params = GenerationParams(seed=30, max_semantic_tokens=20)
    future = engine.submit(small.bark.request("a", None, params))
    while engine.step():
        pass
    assert future.result(timeout=0).samples.size
    assert happened[::2] == [("before", stage) for _, stage in happened[1::2]]
    assert {stage for _, stage in happened} == set(STAGES)


def test_each_size_has_its_own_warm_up(small: Checkpoint) -> None:
    class Graphs:
        captured = 0

        def capture(self, step):
            self.captured += 1
            return step

    graphs, announced = Graphs(), []
    engine = make_engine(small, graphs=graphs, max_batch_size=4)
    engine.runner = replace(engine.runner, before_stage=announced.append)
    for warm_up in engine.runner.warm_ups():
        warm_up()
    # 1, 2 and 4 rows; prompts of up to 64, 320, 640, 960 and 1 280 tokens together; 1 window.
    stages = [stage for stage in ("semantic", "coarse") for _ in range(3 + 5)]
    n_passes = len(engine.runner.fine.warm_ups())
    assert announced == stages + ["fine"] * n_passes
    assert graphs.captured == 2 * (2 * 3 + 5) + n_passes  # of steps, four at once and one


def test_a_shared_prompt_is_not_run_again(small: Checkpoint) -> None:
    engine = make_engine(small, page_size=8, max_batch_size=2)
    params = [GenerationParams(seed=i, min_eos_p=0, max_semantic_tokens=3) for i in range(2)]
    for own in params:
        engine.submit(small.bark.request("Hello there", None, own, last_stage="semantic"))
        while engine.step():
            pass
    n_prompt = small.config.semantic_rules.max_input_semantic_length + 1
    n_shared = (n_prompt - 1) // 8 * 8
    assert engine.stats().stages["semantic"].prefill_tokens == n_prompt + n_prompt - n_shared


def test_errors_of_memory() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("something else"))
