"""The decoder: many steps without a look draw what one after another draws."""

from __future__ import annotations

import pytest
import torch

from bark_fast.engine.decoder import Decoder
from bark_fast.engine.graphs import EagerRunner
from bark_fast.models.gpt import Chunk, KVPages
from bark_fast.stages.causal import CausalStage
from bark_fast.stages.sampling import SamplingParams
from bark_fast.stages.semantic import SemanticTask, build_prompt
from helpers.checkpoints import Checkpoint

PAGE_SIZE, N_PAGES = 8, 60


@pytest.fixture
def stage(small: Checkpoint) -> CausalStage:
    found: CausalStage = small.bark.engine.runner.semantic.stage  # type: ignore[attr-defined]
    return found


def decoder_of(stage: CausalStage, *, sizes: list[int] | None = None) -> Decoder:
    model = stage.model
    cache = KVPages.allocate(
        model.config,
        N_PAGES,
        PAGE_SIZE,
        dtype=model.ops.kv_dtype(torch.float32),
        device=model.device,
    )
    cache.keys.fill_(torch.nan)  # what nobody wrote
    cache.values.fill_(torch.nan)
    return Decoder(stage, cache, max_batch=4, max_steps=6, sizes=sizes, graphs=EagerRunner())


def task_of(
    checkpoint: Checkpoint, seed: int, limit: int, temperature: float = 0.8
) -> SemanticTask:
    rules = checkpoint.config.semantic_rules
    sampling = SamplingParams(temperature, seed, min_new_tokens=100)  # the text does not end
    return SemanticTask(sampling=sampling, prompt=build_prompt([5, 9, 7], [], rules), limit=limit)


def tables(n: int, each: int = 10) -> list[list[int]]:
    return [list(range(i * each, (i + 1) * each)) for i in range(n)]


def run(decoder: Decoder, tasks: list[SemanticTask], steps: int) -> list[list[int]]:
    """Run the tasks to their limits, `steps` between two looks."""
    pages = tables(len(tasks))
    with torch.inference_mode():
        for task, output in zip(tasks, decoder.prefill(tasks, pages)(), strict=True):
            task.accept(output.tokens, ended=output.ended)
        while any(len(task.tokens) < task.limit for task in tasks):
            waiting = [i for i, task in enumerate(tasks) if len(task.tokens) < task.limit]
            chosen = [tasks[i] for i in waiting]
            outputs = decoder.decode(chosen, [pages[i] for i in waiting], steps)()
            for task, output in zip(chosen, outputs, strict=True):
                task.accept(output.tokens, ended=output.ended)
    return [task.tokens for task in tasks]


@pytest.mark.parametrize("sizes", [None, [1, 2, 4]])
@pytest.mark.parametrize("steps", [1, 4, 6])
def test_steps_between_looks_change_nothing(
    small: Checkpoint, stage: CausalStage, steps: int, sizes: list[int] | None
) -> None:
    """Rows end at limits of their own; padded rows write nowhere."""
    limits = [3, 14, 9]
    alone = [
        run(decoder_of(stage), [task_of(small, i, limit)], 1)[0] for i, limit in enumerate(limits)
    ]
    decoder = decoder_of(stage, sizes=sizes)
    tasks = [task_of(small, i, limit) for i, limit in enumerate(limits)]
    assert run(decoder, tasks, steps) == alone
    assert [len(tokens) for tokens in alone] == limits
    used = {page for table in tables(3) for page in table}
    spare = sorted(set(range(N_PAGES)) - used)
    assert decoder.cache.keys[:, spare].isnan().all()


def test_greedy_tokens_are_the_most_likely_ones(small: Checkpoint, stage: CausalStage) -> None:
    task = task_of(small, 0, 10, temperature=0.0)
    tokens = run(decoder_of(stage), [task], 5)[0]
    text, history = build_prompt([5, 9, 7], [], small.config.semantic_rules)
    streams = [[*text, *tokens], [*history, *[-1] * len(tokens)]]
    chunk_pages = list(range(-(-len(streams[0]) // PAGE_SIZE)))
    with torch.inference_mode():
        logits = stage.model.score(Chunk(streams, 0, chunk_pages), decoder_of(stage).cache)
    after = logits[len(text) - 1 : -1, : stage.model.n_columns - 1]  # without the end token
    assert after.argmax(dim=1).tolist() == tokens


def test_pages_can_be_moved(small: Checkpoint, stage: CausalStage) -> None:
    """Saved in the middle, and put back into other pages: the same tokens."""
    expected = run(decoder_of(stage), [task_of(small, 3, 12)], 4)[0]
    decoder, task = decoder_of(stage), task_of(small, 3, 12)
    before, after = tables(2)
    with torch.inference_mode():
        output = decoder.prefill([task], [before])()[0]
        task.accept(output.tokens, ended=output.ended)
        output = decoder.decode([task], [before], 4)()[0]
        task.accept(output.tokens, ended=output.ended)
        saved = decoder.save(before)
        decoder.cache.keys.fill_(torch.nan)
        decoder.cache.values.fill_(torch.nan)
        decoder.restore(after, saved)
        while len(task.tokens) < task.limit:
            output = decoder.decode([task], [after], 4)()[0]
            task.accept(output.tokens, ended=output.ended)
    assert task.tokens == expected
