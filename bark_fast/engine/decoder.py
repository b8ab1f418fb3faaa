"""Run a causal stage: prompts, and many decode steps in a row without a look at the host.

The steps read and write tensors that stay where they are, so that CUDA graphs can be captured on
them. The host fills them from the tasks, enqueues some steps, and looks once at what was
drawn. Rows that the batch does not fill, and rows that have ended, are empty: they read no page and
write none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bark_fast.engine.graphs import GraphRunner, Step, padded_size
from bark_fast.kernels import DecodeState, SamplingMetadata
from bark_fast.models.gpt import KVPages
from bark_fast.models.transfer import mark, to_device, to_host_async
from bark_fast.stages.causal import CausalStage, CausalTask


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
# In the order of SamplingParams.integers and .floats.
_SAMPLING_INTS = ("top_k", "seeds", "min_new_tokens", "suno_rules")
_SAMPLING_FLOATS = ("temperature", "top_p", "min_eos_p")
_EMPTY_ROW = (0, 0, 0, -1, 0, 0, 0, 0, 0, 0)
_EMPTY_FLOATS = (0.0, 1.0, 0.0)


class Decoder:
    """A causal stage with its cache.

    Args:
        max_batch: rows.
        max_steps: the most steps between two looks.
        sizes: the batch sizes that steps are captured for, the last of them `max_batch`; None runs
            each batch as it is.
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
    ) -> None:
        self.stage = stage
        self.cache = cache
        self._sizes = sizes
        self._graphs = graphs
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
        self._host_history, self._history = both(max_batch, max_steps, dtype=torch.int64)
        self._workspace = stage.model.ops.decode_workspace(
            max_batch, config.num_heads, device=self._device
        )
        self._steps: dict[int, tuple[DecodeState, Step]] = {}
        # Waits until no copy from or to the host's tensors is under way.
        self._settle: Callable[[], None] = lambda: None

    @property
    def max_steps(self) -> int:
        """The most steps between two looks."""
        return self._history.shape[1]

    def prefill(self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]]) -> Collect:
        """Enqueue the tasks' prompts and one draw after each."""
        columns = to_host_async(self.stage.prefill(tasks, pages, self.cache))

        def collect() -> list[StepOutput]:
            tokens = [self.stage.token(column) for column in columns().tolist()]
            return [StepOutput([] if t is None else [t], ended=t is None) for t in tokens]

        return collect

    def decode(
        self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], n_steps: int
    ) -> Collect:
        """Enqueue `n_steps` steps of tasks whose prompts have been run.

        A task stops at its limit or its end. On a CPU, where a look costs nothing, all stop with
        the first that does.
        """
        n = len(tasks)
        size = n if self._sizes is None else padded_size(self._sizes, n)
        self._fill(tasks, pages, size)
        state, step = self._step(size)
        for _ in range(n_steps):
            step()
            if self._on_host and state.finished[:n].any():
                break
        return self._results(tasks, n)

    def warm_up_sizes(self) -> Sequence[int]:
        """Return the batch sizes that can be captured in advance."""
        return self._sizes or ()

    def warm_up(self, size: int) -> None:
        """Capture the steps of one batch size; rows are empty meanwhile."""
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
        for row, table in enumerate(pages):
            pages_of_row = torch.tensor(table, dtype=torch.int64, device="cpu")
            self._host_tables[row, : len(table)] = pages_of_row
        self._host_finished[:n] = 0
        self._host_finished[n:] = 1
        if not self._on_host:
            for host, device in (
                (self._host_ints, self._ints),
                (self._host_floats, self._floats),
                (self._host_tables, self._tables),
                (self._host_finished, self._finished),
            ):
                device.copy_(host, non_blocking=True)
            self._settle = mark(self._device)

    def _step(self, size: int) -> tuple[DecodeState, Step]:
        """Return the state of the first `size` rows, and the step that advances it."""
        known = self._steps.get(size)
        if known is not None:
            return known
        ints = [row[:size] for row in self._ints]
        floats = [row[:size] for row in self._floats]
        sampling = SamplingMetadata(
            **dict(zip(_SAMPLING_INTS, ints[len(_STATE_INTS) :], strict=True)),
            **dict(zip(_SAMPLING_FLOATS, floats, strict=True)),
        )
        state = DecodeState(
            **dict(zip(_STATE_INTS, ints, strict=False)),
            block_tables=self._tables[:size],
            finished=self._finished[:size],
            history=self._history[:size],
            page_size=self.cache.page_size,
        )

        def step() -> None:
            self.stage.step(state, sampling, self.cache, workspace=self._workspace)

        # Steps that run while capturing must change nothing, so they run on empty rows.
        filled = self._finished.clone()
        self._finished.fill_(1)
        slot_mapping, seq_lens = state.slot_mapping.clone(), state.seq_lens.clone()
        state.slot_mapping.fill_(-1)
        state.seq_lens.fill_(0)
        captured = self._graphs.capture(step)
        self._finished.copy_(filled)
        state.slot_mapping.copy_(slot_mapping)
        state.seq_lens.copy_(seq_lens)
        self._steps[size] = state, captured
        return state, captured

    def _results(self, tasks: Sequence[CausalTask], n: int) -> Collect:
        """Enqueue the copies of what was drawn to the host."""
        before = [len(task.tokens) for task in tasks]
        limits = [task.limit for task in tasks]
        if not self._on_host:
            for host, device in (
                (self._host_ints, self._ints),
                (self._host_finished, self._finished),
                (self._host_history, self._history),
            ):
                host.copy_(device, non_blocking=True)
        arrived = self._settle = mark(self._device)

        def collect() -> list[StepOutput]:
            arrived()
            after = self._host_ints[_STATE_INTS.index("num_generated"), :n].tolist()
            finished = self._host_finished[:n].tolist()
            history, width = self._host_history[:n].tolist(), self.max_steps
            return [
                StepOutput(
                    [history[i][p % width] for p in range(before[i], after[i])],
                    # A row that is finished before its limit met the end token.
                    ended=bool(finished[i]) and after[i] < limits[i],
                )
                for i in range(n)
            ]

        return collect
