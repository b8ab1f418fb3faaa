"""Tasks of a causal stage: what is run next, and what has been."""

from __future__ import annotations

from bark_fast.stages import semantic


def test_a_task_runs_its_prompt_and_then_its_last_token() -> None:
    task = semantic.SemanticTask(sampling=None, prompt=([1, 2, 3], [4, 5, -1]), limit=3)  # type: ignore[arg-type]
    chunk = task.chunk([0])
    assert (chunk.ids, chunk.start) == ([[1, 2, 3], [4, 5, -1]], 0)
    assert task.positions_after(8) == 3
    task.accept([70], ended=False)
    assert (task.prefilled, task.last_id, task.cached) == (True, 70, 3)
    # The last token before the limit is never run.
    assert task.positions_after(1) == 4
    assert task.positions_after(8) == 5
    task.accept([71, 72], ended=False)
    assert (task.last_id, task.cached, task.finish_reason) == (72, 5, "length")


def test_a_shared_prefix_is_not_run() -> None:
    task = semantic.SemanticTask(sampling=None, prompt=([1, 2, 3], [4, 5, -1]), limit=3)  # type: ignore[arg-type]
    task.cached = 2
    chunk = task.chunk([0])
    assert (chunk.ids, chunk.start) == ([[3], [-1]], 2)
    task.accept([], ended=True)
    assert task.finish_reason == "end"
