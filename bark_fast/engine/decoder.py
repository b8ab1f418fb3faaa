"""Runs a causal stage: prompts, and many decode steps in a row without a look at the host.

What the steps read and write lies in tensors that stay where they are, for CUDA graphs to be
recorded on. The host fills them from the tasks, enqueues some steps, and looks once at what was
drawn. Rows that the batch does not fill, and rows that have ended, are empty: they read no page and
write none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bark_fast.engine.graphs import Recorder, Step, bucket
from bark_fast.kernels import DecodeState
from bark_fast.models.gpt import KVPages
from bark_fast.models.upload import download
from bark_fast.stages.causal import CausalStage, CausalTask
from bark_fast.stages.draws import DrawTensors, clamp_top_k


@dataclass(frozen=True)
class Drawn:
    """What a task drew: tokens, and whether the end token came after them."""

    tokens: list[int]
    ended: bool


Collect = Callable[[], list[Drawn]]
"""Waits for what was enqueued and says what each task drew."""

_INTS = (
    "token_ids",
    "positions",
    "kv_lengths",
    "slots",
    "draws",
    "limits",
    "top_k",
    "seeds",
    "min_draws",
)
_FLOATS = ("temperature", "top_p", "min_eos_p")


class Decoder:
    """One causal stage with its cache.

    Args:
        max_batch: rows; `sizes`: the batch sizes that steps are recorded for, the last of them
            `max_batch`, or None to run each batch as it is.
        max_steps: the most steps between two looks.
        pdl: programmatic dependent launch of the step's kernels.
    """

    def __init__(
        self,
        stage: CausalStage,
        cache: KVPages,
        *,
        max_batch: int,
        max_steps: int,
        sizes: Sequence[int] | None,
        recorder: Recorder,
        pdl: bool = False,
    ) -> None:
        self.stage = stage
        self.cache = cache
        self._sizes = sizes
        self._recorder = recorder
        self._pdl = pdl
        self._device = stage.model.device
        self._on_host = self._device.type == "cpu"
        config = stage.model.config
        max_pages = -(-config.block_size // cache.page_size)

        def both(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            """What the host fills, and what the steps read: on a CPU the same tensor."""
            host = torch.zeros(shape, dtype=dtype, pin_memory=not self._on_host)
            return host, host if self._on_host else torch.zeros_like(host, device=self._device)

        self._host_ints, self._ints = both(len(_INTS), max_batch, dtype=torch.int64)
        self._host_floats, self._floats = both(len(_FLOATS), max_batch, dtype=torch.float32)
        self._host_tables, self._tables = both(max_batch, max_pages, dtype=torch.int64)
        self._host_finished, self._finished = both(max_batch, dtype=torch.int32)
        self._host_history, self._history = both(max_batch, max_steps, dtype=torch.int64)
        # The arrival counters of split attention; every launch leaves them zero.
        self._workspace = torch.zeros(
            max_batch * config.num_heads, dtype=torch.int32, device=self._device
        )
        self._steps: dict[int, tuple[DecodeState, Step]] = {}
        self._arrived: torch.cuda.Event | None = None

    @property
    def max_steps(self) -> int:
        return self._history.shape[1]

    def prefill(self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]]) -> Collect:
        """Enqueue the tasks' prompts and one draw after each."""
        columns = download(self.stage.prefill(tasks, pages, self.cache))

        def collect() -> list[Drawn]:
            tokens = [self.stage.token(column) for column in columns().tolist()]
            return [Drawn([] if t is None else [t], ended=t is None) for t in tokens]

        return collect

    def decode(
        self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], n_steps: int
    ) -> Collect:
        """Enqueue `n_steps` steps of tasks whose prompts have been run; a task stops at its limit
        or its end. On a CPU, where a look costs nothing, all stop with the first that does."""
        n = len(tasks)
        size = n if self._sizes is None else bucket(self._sizes, n)
        self._fill(tasks, pages, size)
        state, step = self._step(size)
        for _ in range(n_steps):
            step()
            if self._on_host and state.finished[:n].any():
                break
        return self._results(tasks, n)

    def warm_up_sizes(self) -> Sequence[int]:
        """The batch sizes that can be recorded in advance."""
        return self._sizes or ()

    def warm_up(self, size: int) -> None:
        """Record the steps of one batch size; rows are empty meanwhile."""
        self._fill([], [], size)
        self._step(size)

    def save(self, pages: Sequence[int]) -> Any:
        """The content of `pages`, on the host."""
        which = torch.tensor(pages, device=self._device)
        return [t[:, which].cpu() for t in (self.cache.keys, self.cache.values)]

    def restore(self, pages: Sequence[int], saved: Any) -> None:
        """Put back what `save` gave into the first of `pages`."""
        for tensor, content in zip((self.cache.keys, self.cache.values), saved, strict=True):
            which = torch.tensor(pages[: content.shape[1]], device=self._device)
            tensor[:, which] = content.to(self._device)

    def _fill(self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], size: int) -> None:
        """Describe the tasks, and empty rows up to `size`, to the steps."""
        if self._arrived is not None:
            # Nobody waited for the last results, if that batch was given up.
            self._arrived.synchronize()
        n, page_size = len(tasks), self.cache.page_size
        rows = [
            (
                task.last_id,
                task.cached,
                task.cached + 1,
                own[task.cached // page_size] * page_size + task.cached % page_size,
                len(task.tokens),
                task.limit,
                clamp_top_k(task.draw.sampling.top_k),
                task.draw.signed_seed,
                task.draw.min_tokens,
            )
            for task, own in zip(tasks, pages, strict=True)
        ]
        floats = [
            (t.draw.sampling.temperature, t.draw.sampling.top_p, t.draw.min_eos_p) for t in tasks
        ]
        empty = (0, 0, 0, -1, 0, 0, 0, 0, 0)
        rows += [empty] * (size - n)
        floats += [(0.0, 1.0, 0.0)] * (size - n)
        self._host_ints[:, :size] = torch.tensor(rows, dtype=torch.int64).T
        self._host_floats[:, :size] = torch.tensor(floats, dtype=torch.float32).T
        for row, own in enumerate(pages):
            self._host_tables[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
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

    def _step(self, size: int) -> tuple[DecodeState, Step]:
        """The state of the first `size` rows, and the step that advances it."""
        known = self._steps.get(size)
        if known is not None:
            return known
        ints = {name: self._ints[i, :size] for i, name in enumerate(_INTS)}
        floats = {name: self._floats[i, :size] for i, name in enumerate(_FLOATS)}
        draws = DrawTensors(**{n: ints.pop(n) for n in ("top_k", "seeds", "min_draws")}, **floats)
        state = DecodeState(
            **ints,
            block_tables=self._tables[:size],
            finished=self._finished[:size],
            history=self._history[:size],
            page_size=self.cache.page_size,
        )

        def step() -> None:
            self.stage.step(state, draws, self.cache, workspace=self._workspace, pdl=self._pdl)

        # What recording runs must change nothing, so it runs on empty rows.
        filled = self._finished.clone()
        self._finished.fill_(1)
        slots, lengths = state.slots.clone(), state.kv_lengths.clone()
        state.slots.fill_(-1)
        state.kv_lengths.fill_(0)
        recorded = self._recorder.record(step)
        self._finished.copy_(filled)
        state.slots.copy_(slots)
        state.kv_lengths.copy_(lengths)
        self._steps[size] = state, recorded
        return state, recorded

    def _results(self, tasks: Sequence[CausalTask], n: int) -> Collect:
        """Enqueue the way back of what was drawn."""
        before = [len(task.tokens) for task in tasks]
        limits = [task.limit for task in tasks]
        arrived = None
        if not self._on_host:
            for host, device in (
                (self._host_ints, self._ints),
                (self._host_finished, self._finished),
                (self._host_history, self._history),
            ):
                host.copy_(device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._arrived = arrived

        def collect() -> list[Drawn]:
            if arrived is not None:
                arrived.synchronize()
            after = self._host_ints[_INTS.index("draws"), :n].tolist()
            finished = self._host_finished[:n].tolist()
            history, width = self._host_history[:n].tolist(), self.max_steps
            return [
                Drawn(
                    [history[i][p % width] for p in range(before[i], after[i])],
                    # A row that is finished before its limit met the end token.
                    ended=bool(finished[i]) and after[i] < limits[i],
                )
                for i in range(n)
            ]

        return collect
