"""Run a causal stage: prompts, and many decode steps in a row without a look at the host.

The steps read and write tensors that stay where they are, so that CUDA graphs can be captured on
them. The host fills them from the tasks, enqueues a block of steps, and looks once at what was
drawn. Rows that the batch does not fill, and rows that have ended, are empty: they read no page and
write none.

The rows know on the device how to go on, so the next block can be enqueued before the host looks at
the last one (`run_ahead`). It serves the next batch if that has the same tasks, less those that
have ended; otherwise what it drew is left aside, and will be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bark_fast.engine.graphs import GraphRunner, Step, padded_size
from bark_fast.engine.prefills import Prefills
from bark_fast.kernels import DecodeState
from bark_fast.models.gpt import KVPages, PackedShape
from bark_fast.models.transfer import mark, to_device, to_host_async
from bark_fast.stages.causal import CausalStage, CausalTask
from bark_fast.stages.sampling import metadata_of


@dataclass(frozen=True)
class StepOutput:
    """The tokens that a task drew in some steps; `ended` if the end token came after them.

    The last is NO_TOKEN if there was nothing to draw from.
    """

    tokens: list[int]
    ended: bool


Collect = Callable[[], list[StepOutput]]
"""Waits for the steps that were enqueued and returns the output of each task."""

_STATE_INTS = (
    "token_ids",
    "positions",
    "seq_lens",
    "slot_mapping",
    "num_generated",
    "limits",
)
_EMPTY_ROW = (0, 0, 0, -1, 0, 0, 0, 0, 0, 0)
_EMPTY_FLOATS = (0.0, 1.0, 0.0)


@dataclass(eq=False)
class _Block:
    """Steps that were enqueued together.

    Attributes:
        tasks: of each row; None where it is empty, or its task has left since.
        pages: of each row, as the steps know them.
        size: rows, padding included.
        results: waits, and returns for each row how many tokens it has drawn, whether it has ended,
            and its history.
        goes_on: steps may follow; they may not where a row runs whose task has left.
        drawn, ended: what `results` gave, None before.
    """

    tasks: list[CausalTask | None]
    pages: list[list[int]]
    size: int
    n_steps: int
    results: Callable[[], tuple[list[int], list[bool], list[list[int]]]]
    goes_on: bool = True
    drawn: list[int] | None = None
    ended: list[bool] | None = None

    def __post_init__(self) -> None:
        self.limits = [0 if task is None else task.limit for task in self.tasks]
        self._rows = {id(task): i for i, task in enumerate(self.tasks) if task is not None}

    def row_of(self, task: CausalTask) -> int | None:
        """Return the row of a task, if it has one."""
        return self._rows.get(id(task))

    def leave(self, row: int) -> None:
        """Take note that a row's task is not one of the batch any more."""
        self._rows.pop(id(self.tasks[row]), None)
        self.tasks[row], self.pages[row] = None, []

    def collect(self, tasks: Sequence[CausalTask]) -> Collect:
        """Return what waits for the outputs of some of its tasks."""
        before = [len(task.tokens) for task in tasks]
        rows = [self.row_of(task) for task in tasks]

        def collect() -> list[StepOutput]:
            self.drawn, self.ended, history = self.results()
            outputs = []
            for row, start in zip(rows, before, strict=True):
                assert row is not None
                stop, past = self.drawn[row], history[row]
                tokens = [past[p % len(past)] for p in range(start, stop)]
                # A row that is finished before its limit met the end token.
                ended = self.ended[row] and stop < self.limits[row]
                outputs.append(StepOutput(tokens, ended))
            return outputs

        return collect


class Decoder:
    """A causal stage with its cache.

    Args:
        max_batch: rows.
        max_steps: the most steps between two looks.
        sizes: the batch sizes that steps are captured for, the last of them `max_batch`; None runs
            each batch as it is.
        steps_a_graph: steps that are captured together, besides single ones.
        prefill_shapes: of prompts, that are captured.
    """

    def __init__(
        self,
        stage: CausalStage,
        cache: KVPages,
        *,
        max_batch: int,
        max_steps: int,
        sizes: Sequence[int] | None,
        graphs: GraphRunner,
        steps_a_graph: int = 1,
        prefill_shapes: Sequence[PackedShape] = (),
    ) -> None:
        self.stage = stage
        self.cache = cache
        self._sizes = sizes
        self._graphs = graphs
        self._steps_a_graph = steps_a_graph
        self._prefills = Prefills(stage, cache, prefill_shapes, graphs)
        self._device = stage.model.device
        self._on_host = self._device.type == "cpu"
        config = stage.model.config
        max_pages = -(-config.block_size // cache.page_size)

        def both(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            """Return the tensor that the host fills and the one that the steps read.

            On a CPU they are the same.
            """
            pinned = not self._on_host
            host = torch.zeros(shape, dtype=dtype, device="cpu", pin_memory=pinned)
            return host, host if self._on_host else torch.zeros_like(host, device=self._device)

        self._host_ints, self._ints = both(len(_EMPTY_ROW), max_batch, dtype=torch.int64)
        self._host_floats, self._floats = both(len(_EMPTY_FLOATS), max_batch, dtype=torch.float32)
        self._host_tables, self._tables = both(max_batch, max_pages, dtype=torch.int64)
        self._host_finished, self._finished = both(max_batch, dtype=torch.int32)
        self._history = torch.zeros(max_batch, max_steps, dtype=torch.int64, device=self._device)
        self._workspace = stage.model.ops.decode_workspace(
            max_batch, config.num_heads, device=self._device
        )
        self._steps: dict[int, tuple[DecodeState, list[tuple[int, Step]]]] = {}
        # Waits until no copy from the host's tensors is under way.
        self._settle: Callable[[], None] = lambda: None
        self._last: _Block | None = None
        self._ahead: _Block | None = None

    @property
    def max_steps(self) -> int:
        """The most steps between two looks."""
        return self._history.shape[1]

    def prefill(self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]]) -> Collect:
        """Enqueue the tasks' prompts and one draw after each."""
        columns = to_host_async(self._prefills.run(tasks, pages))

        def collect() -> list[StepOutput]:
            tokens = [self.stage.token(column) for column in columns().tolist()]
            return [StepOutput([] if t is None else [t], ended=t is None) for t in tokens]

        return collect

    def decode(
        self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], n_steps: int
    ) -> Collect:
        """Enqueue `n_steps` steps of tasks whose prompts have been run.

        A task stops at its limit or its end. On a CPU, where a look costs nothing, all stop with
        the first that does. Where `run_ahead` has enqueued these tasks' steps, they are as many as
        it was asked for.
        """
        ahead = self._take_ahead(tasks, pages)
        if ahead is None:
            n = len(tasks)
            size = n if self._sizes is None else padded_size(self._sizes, n)
            self._last = None
            self._fill(tasks, pages, size)
            self._last = self._enqueue(list(tasks), [list(own) for own in pages], size, n_steps)
        else:
            self._last = ahead
        return self._last.collect(tasks)

    def run_ahead(
        self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], n_steps: int
    ) -> None:
        """Enqueue up to `n_steps` more steps of the tasks of the last `decode`, whose results need
        not be known.

        Does nothing where that cannot be: pages have to hold these steps already, and to have held
        the first of them when the last ones were enqueued.
        """
        last = self._last
        if last is None or self._ahead is not None or not last.goes_on:
            return
        left = [task.limit - len(task.tokens) for task in tasks]
        n_steps = min(n_steps, max(left) - last.n_steps)
        if n_steps <= 0:
            return
        tables: list[list[int]] = [[] for _ in last.tasks]
        for task, n, table in zip(tasks, left, pages, strict=True):
            row, size = last.row_of(task), self.cache.page_size
            if (
                row is None
                or len(last.pages[row]) * size < task.cached + min(n, last.n_steps + 1)
                or len(table) * size < task.cached + min(n, last.n_steps + n_steps)
            ):
                return
            tables[row] = list(table)
        if tables != last.pages:
            self._settle()
            self._send_tables(tables)
        self._ahead = self._enqueue(list(last.tasks), tables, last.size, n_steps)

    def _take_ahead(
        self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]]
    ) -> _Block | None:
        """Return the block that was enqueued ahead, if it has the next steps of all these tasks."""
        last, ahead = self._last, self._ahead
        self._ahead = None
        if last is None or ahead is None or last.drawn is None or last.ended is None:
            return None
        rows = [ahead.row_of(task) for task in tasks]
        for row, task, table in zip(rows, tasks, pages, strict=True):
            if (
                row is None
                or last.ended[row]
                or len(task.tokens) != last.drawn[row]
                or task.limit != ahead.limits[row]
                or list(table[: len(ahead.pages[row])]) != ahead.pages[row]
            ):
                return None
        # Rows whose tasks have left without an end run on. And where few are left, a smaller batch
        # is faster.
        stay = set(rows)
        left = [row for row, task in enumerate(ahead.tasks) if task is not None and row not in stay]
        ahead.goes_on = all(last.ended[row] for row in left) and (
            self._sizes is None or padded_size(self._sizes, len(tasks)) == ahead.size
        )
        for row in left:
            ahead.leave(row)
        return ahead

    def warm_ups(self) -> list[Callable[[], object]]:
        """Return a call for each graph that captures it."""
        n_streams = 2 if self.stage.name == "semantic" else 1
        decodes = [partial(self._warm_up, size) for size in self._sizes or ()]
        return [*decodes, *self._prefills.warm_ups(n_streams)]

    def _warm_up(self, size: int) -> None:
        """Capture the steps of one batch size; rows are empty meanwhile."""
        self._last = self._ahead = None
        self._fill([], [], size)
        self._step(size)

    def save(self, pages: Sequence[int]) -> Any:
        """Enqueue the copy of the content of `pages` to the host, for `restore`."""
        which = to_device(pages, device=self._device)
        return [to_host_async(t[:, which]) for t in (self.cache.keys, self.cache.values)]

    def restore(self, pages: Sequence[int], saved: Any) -> None:
        """Put back what `save` gave into the first of `pages`."""
        for tensor, arrived in zip((self.cache.keys, self.cache.values), saved, strict=True):
            content = arrived()
            which = to_device(pages[: content.shape[1]], device=self._device)
            tensor[:, which] = to_device(content, device=self._device)

    def _fill(self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], size: int) -> None:
        """Describe the tasks, and empty rows up to `size`, to the steps."""
        self._settle()  # nobody did, if the last batch was given up or only warmed up
        n, page_size = len(tasks), self.cache.page_size
        rows = [
            (
                task.last_id,
                task.cached,
                task.cached + 1,
                table[task.cached // page_size] * page_size + task.cached % page_size,
                len(task.tokens),
                task.limit,
                *task.sampling.integers,
            )
            for task, table in zip(tasks, pages, strict=True)
        ]
        floats = [task.sampling.floats for task in tasks]
        rows += [_EMPTY_ROW] * (size - n)
        floats += [_EMPTY_FLOATS] * (size - n)
        self._host_ints[:, :size] = torch.tensor(rows, dtype=torch.int64, device="cpu").T
        self._host_floats[:, :size] = torch.tensor(floats, dtype=torch.float32, device="cpu").T
        self._host_finished[:n] = 0
        self._host_finished[n:] = 1
        if not self._on_host:
            for host, device in (
                (self._host_ints, self._ints),
                (self._host_floats, self._floats),
                (self._host_finished, self._finished),
            ):
                device.copy_(host, non_blocking=True)
        self._send_tables(pages)

    def _send_tables(self, pages: Sequence[Sequence[int]]) -> None:
        """Tell the steps the pages of each row."""
        for row, table in enumerate(pages):
            pages_of_row = torch.tensor(table, dtype=torch.int64, device="cpu")
            self._host_tables[row, : len(table)] = pages_of_row
        if not self._on_host:
            self._tables.copy_(self._host_tables, non_blocking=True)
            self._settle = mark(self._device)

    def _enqueue(
        self,
        tasks: list[CausalTask | None],
        pages: list[list[int]],
        size: int,
        n_steps: int,
    ) -> _Block:
        """Enqueue steps of the rows as they are, and the copies of what was drawn to the host."""
        n = len(tasks)
        state, programs = self._step(size)
        missing = n_steps
        for n_at_once, run in programs:
            while missing >= n_at_once:
                run()
                missing -= n_at_once
                if self._on_host and state.finished[:n].any():
                    missing = 0
        drawn, finished, history = (
            to_host_async(t) for t in (state.num_generated[:n], state.finished[:n], state.history)
        )

        def results() -> tuple[list[int], list[bool], list[list[int]]]:
            return drawn().tolist(), finished().bool().tolist(), history()[:n].tolist()

        return _Block(tasks, pages, size, n_steps, results)

    def _step(self, size: int) -> tuple[DecodeState, list[tuple[int, Step]]]:
        """Return the state of the first `size` rows, and what advances it: by how many steps, and
        the call that does, the most first."""
        known = self._steps.get(size)
        if known is not None:
            return known
        ints = [row[:size] for row in self._ints]
        floats = [row[:size] for row in self._floats]
        sampling = metadata_of(ints[len(_STATE_INTS) :], floats)
        state = DecodeState(
            **dict(zip(_STATE_INTS, ints, strict=False)),
            block_tables=self._tables[:size],
            finished=self._finished[:size],
            history=self._history[:size],
            page_size=self.cache.page_size,
        )

        def steps(n: int) -> None:
            for _ in range(n):
                self.stage.step(state, sampling, self.cache, workspace=self._workspace)

        # Steps that run while capturing must change nothing, so they run on empty rows.
        filled = self._finished.clone()
        self._finished.fill_(1)
        slot_mapping, seq_lens = state.slot_mapping.clone(), state.seq_lens.clone()
        state.slot_mapping.fill_(-1)
        state.seq_lens.fill_(0)
        programs = [
            (n, self._graphs.capture(partial(steps, n)))
            for n in sorted({1, self._steps_a_graph}, reverse=True)
        ]
        self._finished.copy_(filled)
        state.slot_mapping.copy_(slot_mapping)
        state.seq_lens.copy_(seq_lens)
        self._steps[size] = state, programs
        return state, programs
