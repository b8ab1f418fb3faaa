"""The step loop: schedule, run a batch of one stage, route what it made.

An utterance draws semantic tokens; as soon as enough of them are known its coarse windows run too,
then the fine passes and the codec. `Engine` is the low-level face: `submit` a request, call `step`
until it says that nothing is left. `submit` and cancelling are safe from any thread; `step` is for
one thread at a time (`driver.Driver` is such a thread).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bark_fast.checkpoint.config import Config
from bark_fast.engine.decoder import Collect, Drawn
from bark_fast.engine.kv_cache import PagePool, prompt_keys
from bark_fast.engine.request import STAGES, Request
from bark_fast.engine.scheduler import Batch, Job, Policy, Scheduler, Work
from bark_fast.engine.stats import Counters, EngineStats
from bark_fast.engine.utterance import Progress, Utterance
from bark_fast.models.upload import download
from bark_fast.stages.causal import CausalTask
from bark_fast.stages.draws import Draw
from bark_fast.stages.fine import FineTask
from bark_fast.types import FloatArray, IntArray, Speech

Wait = Callable[[], Sequence[Any]]
"""Waits for a batch and gives a result for each of its jobs."""


class CausalRunner(Protocol):
    """What the engine asks of a causal stage; see `decoder.Decoder`."""

    def prefill(self, tasks: list[CausalTask], pages: list[list[int]]) -> Collect: ...

    def decode(self, tasks: list[CausalTask], pages: list[list[int]], n_steps: int) -> Collect: ...

    def warm_up_sizes(self) -> Sequence[int]: ...

    def warm_up(self, size: int) -> None: ...

    def save(self, pages: list[int]) -> Any: ...

    def restore(self, pages: list[int], saved: Any) -> None: ...


class FineRunner(Protocol):
    def run(self, tasks: list[FineTask]) -> None: ...


class CodecRunner(Protocol):
    def run(self, codes: list[IntArray]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Runners:
    """What runs each stage."""

    semantic: CausalRunner
    coarse: CausalRunner
    fine: FineRunner
    codec: CodecRunner


@dataclass(frozen=True)
class Setup:
    """`EngineOptions` with nothing left open.

    Attributes:
        limits: of the scheduler; `max_running` too.
        steps: decode steps between two looks at the host, for each causal stage.
        depth: batches that may be under way while the next is prepared.
        policy: None is "auto".
    """

    limits: Mapping[Work, int]
    max_running: int
    steps: Mapping[str, int]
    depth: int = 0
    policy: Policy | None = None


class Engine:
    """Many utterances at once, each as if it were alone."""

    def __init__(
        self,
        runners: Runners,
        pools: Mapping[str, PagePool],
        config: Config,
        setup: Setup,
        *,
        device: torch.device,
    ) -> None:
        self.config = config
        self._causal = {"semantic": runners.semantic, "coarse": runners.coarse}
        self._fine, self._codec = runners.fine, runners.codec
        self._pools = pools
        self._setup = setup
        self._device = device
        self._scheduler = Scheduler(pools, setup.limits, max_running=setup.max_running)
        self._counters = Counters(STAGES)
        self._submitting = threading.Lock()
        self._stepping = threading.Lock()
        self._inbox: deque[Utterance] = deque()
        self._cancelled: deque[Utterance] = deque()
        self._active: dict[int, Utterance] = {}
        self._under_way: deque[tuple[Batch, float, Wait]] = deque()
        self._n_submitted = 0

    # What callers use --------------------------------------------------------------------------

    def submit(
        self, request: Request, *, progress: Progress | None = None, urgent: bool = False
    ) -> Future[Speech]:
        """Queue a request. Cancelling the future, in whatever state, cancels the utterance.

        Args:
            progress: called from the thread that steps.
            urgent: someone waits for the audio; the "auto" policy is "latency" meanwhile.
        """
        future: Future[Speech] = Future()
        with self._submitting:
            utterance = Utterance.start(
                request,
                self.config,
                order=self._n_submitted,
                future=future,
                progress=progress,
                urgent=urgent,
                submitted_at=time.perf_counter(),
            )
            self._n_submitted += 1
            self._inbox.append(utterance)
        future.add_done_callback(
            lambda done: self._cancelled.append(utterance) if done.cancelled() else None
        )
        return future

    def cancel(self, future: Future[Speech]) -> bool:
        """Give up a request; False if it has finished already. Its pages come back at once, or
        when the batch that it is in has run."""
        return future.cancel()

    @property
    def on_cpu(self) -> bool:
        return self._device.type == "cpu"

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._inbox or self._active or self._under_way or self._cancelled)

    def step(self) -> bool:
        """Run one batch; returns whether there is more to do."""
        with self._on_device():
            start = time.perf_counter()
            self._take_new()
            batch = self._scheduler.next(self._policy)
            if batch is not None:
                self._launch(batch)
            if self._under_way and (batch is None or len(self._under_way) > self._setup.depth):
                self._collect()
            # What ended here may have been cancelled meanwhile: then nothing more will come of it.
            self._take_cancelled()
            self._counters.busy_s += time.perf_counter() - start
        return self.has_work

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Record the decode steps of all batch sizes now, which otherwise happens when each is
        first met.

        Args:
            progress: called with (recorded, to be recorded).
        """
        todo = [(r, size) for r in self._causal.values() for size in r.warm_up_sizes()]
        with self._on_device():
            while self._under_way:
                self._collect()
            for done, (runner, size) in enumerate(todo, start=1):
                runner.warm_up(size)
                if progress is not None:
                    progress(done, len(todo))

    def stats(self) -> EngineStats:
        """What has been done so far, and what waits; cheap, from any thread."""
        waiting = self._scheduler.waiting()
        snapshots = {}
        for stage, counters in self._counters.stages.items():
            pool = self._pools.get(stage)
            snapshots[stage] = counters.snapshot(
                waiting=sum(n for work, n in waiting.items() if work.stage == stage)
                + (len(self._inbox) if stage == "semantic" else 0),
                used_pages=0 if pool is None else pool.used_pages,
                total_pages=0 if pool is None else pool.n_pages,
            )
        self._counters.submitted = self._n_submitted
        return self._counters.snapshot(snapshots)

    @property
    def used_pages(self) -> int:
        """Pages of keys and values that have an owner; none when nothing is left to do."""
        return sum(pool.used_pages for pool in self._pools.values())

    def fail_all(self, error: BaseException) -> None:
        """Give up everything that was submitted; every caller gets `error`."""
        with self._stepping:
            self._take_new()
            while self._under_way:
                batch, _, wait = self._under_way.popleft()
                with suppress(Exception):
                    wait()  # what is enqueued must not arrive later
                self._scheduler.done(batch)
                for job in batch.jobs:
                    if job.owner.gone:
                        self._scheduler.release(job)
            for utterance in list(self._active.values()):
                self._fail(utterance, error)
            self._take_cancelled()

    # The loop ----------------------------------------------------------------------------------

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        # Triton launches on the current device, whatever device its tensors are on.
        # And all that threads enqueue by turns has to be in one order: one stream for all.
        stream = (
            torch.cuda.stream(torch.cuda.default_stream(self._device))
            if self._device.type == "cuda"
            else nullcontext()
        )
        # The thread that steps may be a caller's, inside an autocast, which holds for its thread.
        as_built = torch.autocast(self._device.type, enabled=False)
        with self._stepping, torch.inference_mode(), stream, as_built:
            yield

    @property
    def _policy(self) -> Policy:
        if self._setup.policy is not None:
            return self._setup.policy
        urgent = any(utterance.urgent for utterance in self._active.values())
        return "latency" if urgent else "throughput"

    def _take_new(self) -> None:
        while self._inbox:
            utterance = self._inbox.popleft()
            self._active[utterance.order] = utterance
            try:
                self._begin(utterance)
            except Exception as error:
                self._fail(utterance, error)
        self._take_cancelled()

    def _take_cancelled(self) -> None:
        for _ in range(len(self._cancelled)):
            utterance = self._cancelled.popleft()
            if utterance.order in self._active:
                self._counters.cancelled += 1
                self._drop(utterance)
            elif not utterance.gone:
                self._cancelled.append(utterance)  # still in the inbox

    def _launch(self, batch: Batch) -> None:
        start = time.perf_counter()
        try:
            self._move_pages(batch)
            wait = self._enqueue(batch)
        except Exception as error:
            self._failed(batch, error)
        except BaseException:  # a keyboard interrupt, say: nothing is lost, a later step goes on
            self._put_back(batch)
            raise
        else:
            self._under_way.append((batch, start, wait))

    def _collect(self) -> None:
        """Wait for the batch that was launched first, and take what it made."""
        batch, start, wait = self._under_way.popleft()
        try:
            results = wait()
        except Exception as error:
            self._failed(batch, error)
            return
        except BaseException:
            self._put_back(batch)
            raise
        self._scheduler.done(batch)
        stop = time.perf_counter()
        counters = self._counters.stages[batch.work.stage]
        counters.batches += 1
        counters.utterances += len(batch.jobs)
        counters.busy_s += stop - start
        for i, (job, result) in enumerate(zip(batch.jobs, results, strict=True)):
            utterance: Utterance = job.owner
            job.alone = False
            if utterance.gone:
                self._scheduler.release(job)
                continue
            try:
                if batch.work.is_prefill:
                    shared = job.n_shared * self._pools[batch.work.stage].page_size
                    counters.prefill_tokens += job.cost - shared
                utterance.ran(batch.work.stage, start, stop)
                counters.tokens += self._route(utterance, job, result)
            except Exception as error:
                self._fail(utterance, error)
            except BaseException as error:
                for other in batch.jobs[i:]:  # half-way through they cannot go on
                    if not other.owner.gone:
                        self._fail(other.owner, error)
                raise

    def _enqueue(self, batch: Batch) -> Wait:
        """Run the batch; what comes back waits for it and gives a result for each job."""
        utterances: list[Utterance] = [job.owner for job in batch.jobs]
        if batch.work == Work.CODEC:
            waves = [download(w) for w in self._codec.run([u.fine_tokens for u in utterances])]
            return lambda: [wave().numpy() for wave in waves]
        if batch.work == Work.FINE:
            self._fine.run([u.fine for u in utterances if u.fine is not None])
            return lambda: [None] * len(utterances)
        stage = batch.work.stage
        runner = self._causal[stage]
        tasks = [u.causal(stage) for u in utterances]
        pages = [job.pages for job in batch.jobs]
        if batch.work.is_prefill:
            for task, job in zip(tasks, batch.jobs, strict=True):
                task.cached = job.n_shared * self._pools[stage].page_size
            return runner.prefill(tasks, pages)
        left = max(task.limit - len(task.tokens) for task in tasks)
        return runner.decode(tasks, pages, min(self._setup.steps[stage], left))

    def _move_pages(self, batch: Batch) -> None:
        """Bring pages that change hands to the host, and back those that have found new ones."""
        for job, pages in batch.evicted:
            self._counters.preempted += 1
            try:
                job.saved = self._causal[job.work.stage].save(pages)
            except Exception as error:  # no memory left on the host, say
                self._fail(job.owner, error)
        for job in batch.restored:
            self._causal[job.work.stage].restore(job.pages, job.saved)
            job.saved = None

    # Routing -----------------------------------------------------------------------------------

    def _begin(self, utterance: Utterance) -> None:
        """Queue the first stage that there is something to do in."""
        given = utterance.request.given
        if given is None:
            self._queue_causal(utterance, "semantic")
        else:
            utterance.coarse.extend(given, complete=True)
            self._go_on_with_coarse(utterance)

    def _route(self, utterance: Utterance, job: Job, result: Any) -> int:
        """Take a job's result and queue what comes next; returns how many tokens it made."""
        if job.work == Work.CODEC:
            utterance.report("codec")
            self._finish(utterance, result)
            return int(utterance.fine_tokens.shape[1])
        if job.work == Work.FINE:
            return self._route_fine(utterance)
        drawn: Drawn = result
        stage = job.work.stage
        utterance.causal(stage).accept(drawn.tokens, ended=drawn.ended)
        utterance.report(stage)
        if stage == "semantic":
            ended = utterance.semantic.finish_reason is not None
            if ended:
                self._end_stage(utterance, "semantic")
            else:
                self._queue_causal(utterance, "semantic")
            if utterance.request.last_stage == "semantic":
                if ended:
                    self._finish(utterance, _NO_SAMPLES)
                return len(drawn.tokens)
            utterance.coarse.extend(drawn.tokens, complete=ended)
            coarse = utterance.jobs.get("coarse")
            if coarse is not None and (coarse.running or self._scheduler.is_queued(coarse)):
                return len(drawn.tokens)
        self._go_on_with_coarse(utterance)
        return len(drawn.tokens)

    def _go_on_with_coarse(self, utterance: Utterance) -> None:
        """Queue the next coarse steps if they can be run, or what follows the last."""
        if utterance.coarse.finished:
            self._end_stage(utterance, "coarse")
            if utterance.request.last_stage == "coarse":
                self._finish(utterance, _NO_SAMPLES)
            else:
                self._start_fine(utterance)
        elif utterance.coarse.open:
            self._queue_causal(utterance, "coarse")

    def _route_fine(self, utterance: Utterance) -> int:
        task = utterance.fine
        assert task is not None
        utterance.report("fine")
        if task.finished:
            self._end_stage(utterance, "fine")
            utterance.fine_tokens = task.result()
            if utterance.request.last_stage == "fine":
                self._finish(utterance, _NO_SAMPLES)
            else:
                self._queue(utterance, Work.CODEC, cost=task.n_frames)
        else:
            self._queue(utterance, Work.FINE, group=task.codebook)
        n_frames: int = task.n_frames
        return n_frames

    def _start_fine(self, utterance: Utterance) -> None:
        request = utterance.request
        task = FineTask(
            utterance.codes(self.config),
            request.voice,
            Draw(request.fine, request.seed),
            self.config,
            self._device,
        )
        utterance.fine = task
        if task.n_frames:
            self._queue(utterance, Work.FINE, group=task.codebook)
        else:  # nothing was said
            utterance.fine_tokens = task.result()
            self._finish(utterance, _NO_SAMPLES)

    def _queue_causal(self, utterance: Utterance, stage: str) -> None:
        """Queue the next steps of a causal task, or its prompt."""
        task = utterance.causal(stage)
        pool = self._pools[stage]
        if task.prefilled:
            positions = task.positions_after(self._setup.steps[stage])
            self._queue(utterance, _DECODE[stage], positions=positions)
            return
        job = utterance.jobs.get(stage)
        if job is not None:  # another prompt: what its pages hold is of no use
            self._scheduler.release(job)
        self._queue(
            utterance,
            _PREFILL[stage],
            cost=task.length,
            positions=task.length,
            keys=prompt_keys(task.prompt, pool.page_size),
        )

    def _queue(self, utterance: Utterance, work: Work, **about: Any) -> None:
        job = utterance.jobs.get(work.stage)
        if job is None:
            job = utterance.jobs[work.stage] = Job(utterance.order, utterance, work)
        job.work = work
        for name, value in about.items():
            setattr(job, name, value)
        if work in _DECODE.values():
            job.cost = 1
        self._scheduler.add(job)

    def _end_stage(self, utterance: Utterance, stage: str) -> None:
        job = utterance.jobs.pop(stage, None)
        if job is not None:
            self._scheduler.remove(job)
            self._scheduler.release(job)

    # Ends --------------------------------------------------------------------------------------

    def _finish(self, utterance: Utterance, samples: FloatArray) -> None:
        self._end_stage(utterance, "codec")
        speech = utterance.speech(samples, self.config)
        self._drop(utterance)
        now = time.perf_counter()
        self._counters.finished += 1
        if utterance.request.last_stage == "codec":
            self._counters.spoke(speech.duration_s, now - utterance.submitted_at)
        _resolve(utterance.future, speech)

    def _fail(self, utterance: Utterance, error: BaseException) -> None:
        self._drop(utterance)
        self._counters.failed += 1
        _resolve(utterance.future, error)

    def _drop(self, utterance: Utterance) -> None:
        """Forget an utterance. Jobs that are being run are released when they are done."""
        utterance.gone = True
        self._active.pop(utterance.order, None)
        for job in utterance.jobs.values():
            if not job.running:
                self._scheduler.remove(job)
                self._scheduler.release(job)

    def _put_back(self, batch: Batch) -> None:
        """The batch has not run; its jobs are ready as before."""
        self._scheduler.done(batch)
        for job, _ in batch.evicted:
            if job.saved is None and not job.owner.gone:
                self._fail(job.owner, RuntimeError("interrupted while its pages were saved"))
        for job in batch.restored:
            if job.saved is not None:
                self._scheduler.take_back(job)
        for job in batch.jobs:
            utterance: Utterance = job.owner
            if batch.work.is_prefill or utterance.gone:
                # The prompt is nowhere, and whoever shares its pages is in this batch too.
                self._scheduler.release(job, forget=batch.work.is_prefill)
            if not utterance.gone:
                self._scheduler.add(job)

    def _failed(self, batch: Batch, error: Exception) -> None:
        """The batch raised. Too large for the memory: smaller ones from now on. Otherwise one of
        its jobs is at fault, and running each alone will tell which."""
        self._put_back(batch)
        out_of_memory = _is_out_of_memory(error)
        if out_of_memory and self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch.jobs) == 1:
            if not batch.jobs[0].owner.gone:
                self._fail(batch.jobs[0].owner, error)
        elif out_of_memory:
            self._scheduler.shrink(batch)
        else:
            for job in batch.jobs:
                job.alone = True


_NO_SAMPLES: FloatArray = np.empty(0, dtype=np.float32)
_PREFILL = {"semantic": Work.SEMANTIC_PREFILL, "coarse": Work.COARSE_PREFILL}
_DECODE = {"semantic": Work.SEMANTIC_DECODE, "coarse": Work.COARSE_DECODE}


def _resolve(future: Future[Speech], result: Speech | BaseException) -> None:
    try:
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
    except InvalidStateError:  # it was cancelled at this very moment
        pass


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
