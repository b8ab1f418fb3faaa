"""What runs next. Policy alone: no tensors, no tokens.

A job is one utterance in one stage. Jobs that can go on stand in a queue for each kind of work,
oldest utterance first; `next` picks a kind and takes jobs from its queue until the batch is full.

Which kind, by policy:

* latency: what ends an utterance (codec, fine) first; the others take turns, so that prompts join
  between decode steps and both causal stages move on together.
* throughput: the fullest batch; of equal ones, the later stage.
* staged: the stage that ran last as long as it has work, then the one with the most; for engines in
  which going from one stage to another is costly.

Whatever the policy, work that was passed over `patience` times (staged: 16 times as often) runs
next. Within a kind nobody
overtakes: an utterance that waits for pages holds back younger prompts, and may take the pages of
younger utterances that are not being run.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from bark_fast.engine.kv_cache import PagePool

Policy = Literal["latency", "throughput", "staged"]


_STAGED_PATIENCE = 16  # times the usual: going back and forth is what that policy avoids


class Work(IntEnum):
    """Kinds of work, later stages last."""

    SEMANTIC_PREFILL = 0
    SEMANTIC_DECODE = 1
    COARSE_PREFILL = 2
    COARSE_DECODE = 3
    FINE = 4
    CODEC = 5

    @property
    def stage(self) -> str:
        return self.name.split("_")[0].lower()

    @property
    def is_prefill(self) -> bool:
        return self in (Work.SEMANTIC_PREFILL, Work.COARSE_PREFILL)


@dataclass(eq=False)
class Job:
    """One utterance in one stage.

    Attributes:
        order: of arrival; the least is the oldest.
        owner: whose job it is; the scheduler does not look.
        work: what it is ready for.
        cost: what it counts towards the limit of that work (tokens of a prompt, rows, windows,
            frames).
        group: only jobs of one group run together.
        positions: that its pages must hold before it can run.
        keys: `prompt_keys` of a prompt that is to be run.
        pages: that it holds, in order.
        n_shared: how many of them came with content.
        alone: run it by itself.
        saved: the content of its pages, if they were taken from it; the runner's.
        running: it is in a batch that is not done.
    """

    order: int
    owner: Any
    work: Work
    cost: int = 1
    group: int = 0
    positions: int = 0
    keys: Sequence[bytes] = ()
    pages: list[int] = field(default_factory=list)
    n_shared: int = 0
    alone: bool = False
    saved: Any = None
    running: bool = False


@dataclass(frozen=True)
class Batch:
    """Jobs to run together.

    Attributes:
        evicted: jobs that lose their pages to it, and those pages: their content has to be saved
            first.
        restored: jobs of the batch that have pages again: their saved content has to be put back.
    """

    work: Work
    jobs: list[Job]
    evicted: list[tuple[Job, list[int]]]
    restored: list[Job]


class Scheduler:
    """Queues of jobs, and the pages that they hold.

    Args:
        pools: the pages of each causal stage, by its name.
        limits: the most that the jobs of one batch may cost together, for each kind of work. A job
            that costs more runs alone.
        max_running: the most utterances that hold pages of a stage.
    """

    def __init__(
        self,
        pools: Mapping[str, PagePool],
        limits: Mapping[Work, int],
        *,
        max_running: int,
        patience: int = 32,
    ) -> None:
        self.limits = dict(limits)
        self._pools = pools
        self._max_running = max_running
        self._patience = patience
        self._queues: dict[Work, list[Job]] = {work: [] for work in Work}
        self._holders: dict[str, dict[Job, None]] = {stage: {} for stage in pools}
        self._evicted: dict[str, dict[Job, None]] = {stage: {} for stage in pools}
        self._in_flight: set[Work] = set()
        self._passed_over = dict.fromkeys(Work, 0)
        self._last_run = dict.fromkeys(Work, 0)
        self._last_stage = ""
        self._clock = 0

    def add(self, job: Job) -> None:
        """The job is ready for its work."""
        insort(self._queues[job.work], job, key=_order)

    def remove(self, job: Job) -> None:
        """The job is not ready any more, if it was."""
        if job in self._queues[job.work]:
            self._queues[job.work].remove(job)

    def is_queued(self, job: Job) -> bool:
        """Whether the job waits for its work."""
        return job in self._queues[job.work]

    def release(self, job: Job, *, forget: bool = False) -> None:
        """Give back the job's pages; `forget` if what they were to hold was never computed."""
        stage = job.work.stage
        if stage in self._pools:
            self._pools[stage].release(job.pages, forget=forget)
            self._holders[stage].pop(job, None)
            self._evicted[stage].pop(job, None)
        job.saved, job.n_shared = None, 0

    def take_back(self, job: Job) -> None:
        """The pages of a restored job did not get their content: it waits for others."""
        stage = job.work.stage
        self._pools[stage].release(job.pages)
        self._holders[stage].pop(job, None)
        self._evicted[stage][job] = None

    def waiting(self) -> dict[Work, int]:
        """How many jobs are ready for each kind of work."""
        return {work: len(queue) for work, queue in self._queues.items()}

    def next(self, policy: Policy = "latency") -> Batch | None:
        """The next batch, or None if nothing can run. Its jobs are off the queue; one batch of a
        kind is under way at a time, so that jobs which could run together do."""
        ready = [w for w, queue in self._queues.items() if queue and w not in self._in_flight]
        for work in self._ranked(ready, policy):
            batch = self._form(work)
            if batch is not None:
                self._clock += 1
                self._last_run[work] = self._clock
                self._last_stage = work.stage
                for other in ready:
                    self._passed_over[other] = 0 if other == work else self._passed_over[other] + 1
                self._in_flight.add(work)
                for job in batch.jobs:
                    self._queues[work].remove(job)
                    job.running = True
                return batch
        return None

    def done(self, batch: Batch) -> None:
        """The batch has run, or failed: its kind of work may run again."""
        self._in_flight.discard(batch.work)
        for job in batch.jobs:
            job.running = False

    def shrink(self, batch: Batch) -> None:
        """A batch of that size does not fit into memory: make them at most half as large."""
        cost = sum(job.cost for job in batch.jobs)
        self.limits[batch.work] = max(1, min(cost, self.limits[batch.work]) // 2)

    def _ranked(self, ready: list[Work], policy: Policy) -> Iterator[Work]:
        def rank(work: Work) -> tuple[float, ...]:
            patience = self._patience * (_STAGED_PATIENCE if policy == "staged" else 1)
            overdue = self._passed_over[work] if self._passed_over[work] >= patience else 0
            if policy == "staged":
                return (-overdue, work.stage != self._last_stage, -len(self._queues[work]), work)
            if policy == "latency":
                ending = work in (Work.FINE, Work.CODEC)
                return (-overdue, not ending, 0 if ending else self._last_run[work], -work)
            return (-overdue, -self._fill(work), -work)

        return iter(sorted(ready, key=rank))

    def _fill(self, work: Work) -> float:
        cost = 0
        for job in self._queues[work]:
            cost += job.cost
            if cost >= self.limits[work]:
                return 1.0
        return cost / self.limits[work]

    def _form(self, work: Work) -> Batch | None:
        queue = self._queues[work]
        batch = Batch(work, [], [], [])
        cost = 0
        for job in list(queue):
            first = not batch.jobs
            if work == Work.CODEC:  # runs padded to the longest
                together = (len(batch.jobs) + 1) * max(j.cost for j in [*batch.jobs, job])
            else:
                together = cost + job.cost
            if not first and (together > self.limits[work] or job.alone):
                break
            if not first and job.group != batch.jobs[0].group:
                continue
            if not self._give_pages(job, batch):
                if work.is_prefill:
                    break  # the younger ones must not overtake it
                continue
            batch.jobs.append(job)
            cost += job.cost
            if job.alone:
                break
        return batch if batch.jobs else None

    def _give_pages(self, job: Job, batch: Batch) -> bool:
        """See to it that the job has the pages that it needs; False if it has to wait."""
        stage = job.work.stage
        if stage not in self._pools:
            return True
        pool, holders = self._pools[stage], self._holders[stage]
        evicted = self._evicted[stage]
        if job in (victim for victim, _ in batch.evicted):
            return False
        if job not in holders and len(holders) >= self._max_running:
            return False
        if job.work.is_prefill and any(other.order < job.order for other in evicted):
            return False  # nor those whose pages were taken
        if not job.pages and job.work.is_prefill:
            job.n_shared = pool.share(job.pages, job.keys)
        needed = pool.pages_for(job.positions)
        if not pool.extend(job.pages, needed) and not (
            self._evict_for(job, needed - len(job.pages), batch) and pool.extend(job.pages, needed)
        ):
            if job not in holders:
                pool.release(job.pages)
                job.n_shared = 0
            return False
        holders[job] = None
        if job in evicted:
            del evicted[job]
            batch.restored.append(job)
        elif job.work.is_prefill:
            pool.publish(job.pages, job.keys)
        return True

    def _evict_for(self, job: Job, n_pages: int, batch: Batch) -> bool:
        """Take pages from younger utterances, the youngest first, until so many are free."""
        pool, holders = self._pools[job.work.stage], self._holders[job.work.stage]
        victims: list[Job] = []
        gain = pool.free_pages
        for other in sorted(holders, key=_order, reverse=True):
            if gain >= n_pages or other.order <= job.order:
                break
            if not other.running and other not in batch.jobs:
                victims.append(other)
                gain += pool.sole_pages(other.pages)
        if gain < n_pages:
            return False
        for victim in victims:
            batch.evicted.append((victim, list(victim.pages)))
            pool.release(victim.pages)
            del holders[victim]
            self._evicted[job.work.stage][victim] = None
        return True


def _order(job: Job) -> int:
    return job.order
