"""Decides what runs next. Policy alone: no tensors, no tokens.

A scheduled task is one utterance in one stage. Tasks that can go on stand in a queue for each
phase, oldest utterance first; `schedule` picks a phase and takes tasks from its queue until the
batch is full. The phase depends on the policy:

* latency: what ends an utterance (codec, fine) first; the others take turns, so that prompts join
  between decode steps and both causal stages move on together.
* throughput: the fullest batch; of equal ones, the later stage.
* staged: the stage that ran last as long as it has work, then the one with the most; for engines in
  which going from one stage to another is costly.

Whatever the policy, a phase that was passed over `patience` times (staged: 16 times as often) runs
next. Within a phase nobody overtakes: an utterance that waits for pages holds back younger prompts,
and may take the pages of younger utterances that are not being run.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, Literal, TypeVar

from bark_fast.engine.kv_cache import PagePool
from bark_fast.types import Stage

Policy = Literal["latency", "throughput", "staged"]
Owner = TypeVar("Owner")

_STAGED_PATIENCE = 16  # times the usual: going back and forth is what that policy avoids


class Phase(IntEnum):
    """Kinds of work, later stages last."""

    SEMANTIC_PREFILL = 0
    SEMANTIC_DECODE = 1
    COARSE_PREFILL = 2
    COARSE_DECODE = 3
    FINE = 4
    CODEC = 5

    @property
    def stage(self) -> Stage:
        """The stage that it is a phase of."""
        return _STAGE_OF[self]

    @property
    def is_prefill(self) -> bool:
        """True if it runs prompts."""
        return self in (Phase.SEMANTIC_PREFILL, Phase.COARSE_PREFILL)


_STAGE_OF: dict[Phase, Stage] = {
    Phase.SEMANTIC_PREFILL: "semantic",
    Phase.SEMANTIC_DECODE: "semantic",
    Phase.COARSE_PREFILL: "coarse",
    Phase.COARSE_DECODE: "coarse",
    Phase.FINE: "fine",
    Phase.CODEC: "codec",
}


@dataclass(frozen=True)
class Ready:
    """The next piece of work of an utterance, ready to be scheduled.

    Attributes:
        cost: how much it counts towards the limit of its phase (tokens of a prompt, rows, windows,
            frames).
        positions: how many positions its pages must hold before it can run.
        keys: `prompt_keys` of a prompt that is to be run.
        group: only tasks of one group run together.
    """

    phase: Phase
    cost: int = 1
    positions: int = 0
    keys: Sequence[bytes] = ()
    group: int = 0


@dataclass(eq=False)
class ScheduledTask(Generic[Owner]):
    """One utterance in one stage.

    Attributes:
        order: of the utterance's arrival; the least is the oldest.
        owner: the utterance; the scheduler does not look into it.
        ready: the work that it waits for or is doing.
        pages: the pages that it holds, in order.
        n_shared: how many of them came with content.
        alone: run it by itself.
        saved: the content of its pages, if they were taken from it; the runner's.
        running: it is in a batch that is not complete.
    """

    order: int
    owner: Owner
    ready: Ready
    pages: list[int] = field(default_factory=list)
    n_shared: int = 0
    alone: bool = False
    saved: Any = None
    running: bool = False

    @property
    def stage(self) -> Stage:
        """The stage that the utterance is in."""
        return self.ready.phase.stage


@dataclass(frozen=True)
class Batch(Generic[Owner]):
    """Tasks to run together.

    Attributes:
        evicted: tasks that lose their pages to it, and those pages: their content has to be saved
            first.
        restored: tasks of the batch that have pages again: their content has to be put back.
    """

    phase: Phase
    tasks: list[ScheduledTask[Owner]]
    evicted: list[tuple[ScheduledTask[Owner], list[int]]]
    restored: list[ScheduledTask[Owner]]


class Scheduler(Generic[Owner]):
    """Queues of tasks, and the pages that they hold.

    Args:
        pools: the pages of each causal stage, by its name.
        limits: the most that the tasks of one batch may cost together, for each phase. A task that
            costs more runs alone.
        max_running: the most utterances that hold pages of a stage.
    """

    def __init__(
        self,
        pools: Mapping[Stage, PagePool],
        limits: Mapping[Phase, int],
        *,
        max_running: int,
        patience: int = 32,
    ) -> None:
        self.limits = dict(limits)
        self._pools = pools
        self._max_running = max_running
        self._patience = patience
        self._queues: dict[Phase, list[ScheduledTask[Owner]]] = {phase: [] for phase in Phase}
        self._holders: dict[Stage, dict[ScheduledTask[Owner], None]] = {s: {} for s in pools}
        self._evicted: dict[Stage, dict[ScheduledTask[Owner], None]] = {s: {} for s in pools}
        self._in_flight: set[Phase] = set()
        self._passed_over = dict.fromkeys(Phase, 0)
        self._last_run = dict.fromkeys(Phase, 0)
        self._last_stage: Stage | None = None
        self._clock = 0

    def add(self, task: ScheduledTask[Owner]) -> None:
        """Queue a task for the work that it is ready for."""
        insort(self._queues[task.ready.phase], task, key=_order)

    def remove(self, task: ScheduledTask[Owner]) -> None:
        """Take a task off its queue, if it is on it."""
        queue = self._queues[task.ready.phase]
        if task in queue:
            queue.remove(task)

    def release(self, task: ScheduledTask[Owner], *, forget: bool = False) -> None:
        """Give back the task's pages; `forget` if what they were to hold was never computed."""
        if task.stage in self._pools:
            self._pools[task.stage].free(task.pages, forget=forget)
            self._holders[task.stage].pop(task, None)
            self._evicted[task.stage].pop(task, None)
        task.saved, task.n_shared = None, 0

    def take_back(self, task: ScheduledTask[Owner]) -> None:
        """Take the pages of a restored task whose content was not put back: it waits again."""
        self._pools[task.stage].free(task.pages)
        self._holders[task.stage].pop(task, None)
        self._evicted[task.stage][task] = None

    def waiting(self) -> dict[Phase, int]:
        """Return how many tasks are ready for each phase."""
        return {phase: len(queue) for phase, queue in self._queues.items()}

    def schedule(self, policy: Policy = "latency") -> Batch[Owner] | None:
        """Return the next batch, or None if nothing can run.

        Its tasks are off the queue. One batch of a phase is under way at a time, so that tasks
        which could run together do.
        """
        ready = [p for p, queue in self._queues.items() if queue and p not in self._in_flight]
        for phase in self._ranked(ready, policy):
            batch = self._form(phase)
            if batch is not None:
                self._clock += 1
                self._last_run[phase] = self._clock
                self._last_stage = phase.stage
                for other in ready:
                    self._passed_over[other] = 0 if other == phase else self._passed_over[other] + 1
                self._in_flight.add(phase)
                for task in batch.tasks:
                    self._queues[phase].remove(task)
                    task.running = True
                return batch
        return None

    def complete(self, batch: Batch[Owner]) -> None:
        """Take note that the batch has run, or failed: its phase may run again."""
        self._in_flight.discard(batch.phase)
        for task in batch.tasks:
            task.running = False

    def shrink(self, batch: Batch[Owner]) -> None:
        """Make batches of that phase at most half as large: this one did not fit into memory."""
        cost = sum(task.ready.cost for task in batch.tasks)
        self.limits[batch.phase] = max(1, min(cost, self.limits[batch.phase]) // 2)

    def _ranked(self, ready: list[Phase], policy: Policy) -> Iterator[Phase]:
        def rank(phase: Phase) -> tuple[float, ...]:
            patience = self._patience * (_STAGED_PATIENCE if policy == "staged" else 1)
            overdue = self._passed_over[phase] if self._passed_over[phase] >= patience else 0
            if policy == "staged":
                changes_stage = phase.stage != self._last_stage
                return (-overdue, changes_stage, -len(self._queues[phase]), phase)
            if policy == "latency":
                ending = phase in (Phase.FINE, Phase.CODEC)
                return (-overdue, not ending, 0 if ending else self._last_run[phase], -phase)
            return (-overdue, -self._fill(phase), -phase)

        return iter(sorted(ready, key=rank))

    def _fill(self, phase: Phase) -> float:
        cost = 0
        for task in self._queues[phase]:
            cost += task.ready.cost
            if cost >= self.limits[phase]:
                return 1.0
        return cost / self.limits[phase]

    def _form(self, phase: Phase) -> Batch[Owner] | None:
        batch: Batch[Owner] = Batch(phase, [], [], [])
        tasks = batch.tasks
        cost = 0
        for task in list(self._queues[phase]):
            if phase == Phase.CODEC:  # runs padded to the longest
                longest = max(t.ready.cost for t in [*tasks, task])
                together = (len(tasks) + 1) * longest
            else:
                together = cost + task.ready.cost
            if tasks and (together > self.limits[phase] or task.alone):
                break
            if tasks and task.ready.group != tasks[0].ready.group:
                continue
            if not self._give_pages(task, batch):
                if phase.is_prefill:
                    break  # the younger ones must not overtake it
                continue
            tasks.append(task)
            cost += task.ready.cost
            if task.alone:
                break
        return batch if tasks else None

    def _give_pages(self, task: ScheduledTask[Owner], batch: Batch[Owner]) -> bool:
        """Give the task the pages that it needs; return False if it has to wait for them."""
        if task.stage not in self._pools:
            return True
        pool, holders = self._pools[task.stage], self._holders[task.stage]
        evicted, ready = self._evicted[task.stage], task.ready
        if task in (victim for victim, _ in batch.evicted):
            return False
        if task not in holders and len(holders) >= self._max_running:
            return False
        if ready.phase.is_prefill and any(other.order < task.order for other in evicted):
            return False  # nor overtake those whose pages were taken
        if not task.pages and ready.phase.is_prefill:
            task.n_shared = pool.match_prefix(task.pages, ready.keys)
        needed = pool.pages_for(ready.positions)
        if not pool.allocate(task.pages, needed) and not (
            self._evict_for(task, needed - len(task.pages), batch)
            and pool.allocate(task.pages, needed)
        ):
            if task not in holders:
                pool.free(task.pages)
                task.n_shared = 0
            return False
        holders[task] = None
        if task in evicted:
            del evicted[task]
            batch.restored.append(task)
        elif ready.phase.is_prefill:
            pool.cache(task.pages, ready.keys)
        return True

    def _evict_for(self, task: ScheduledTask[Owner], n_pages: int, batch: Batch[Owner]) -> bool:
        """Take pages from younger utterances, the youngest first, until so many are free."""
        pool, holders = self._pools[task.stage], self._holders[task.stage]
        victims: list[ScheduledTask[Owner]] = []
        gain = pool.free_pages
        for other in sorted(holders, key=_order, reverse=True):
            if gain >= n_pages or other.order <= task.order:
                break
            if not other.running and other not in batch.tasks:
                victims.append(other)
                gain += pool.sole_pages(other.pages)
        if gain < n_pages:
            return False
        for victim in victims:
            batch.evicted.append((victim, list(victim.pages)))
            pool.free(victim.pages)
            del holders[victim]
            self._evicted[task.stage][victim] = None
        return True


def _order(task: ScheduledTask[Owner]) -> int:
    return task.order
