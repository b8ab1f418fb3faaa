"""The step loop: schedule, run a batch of one stage, advance the utterances in it.

An utterance draws semantic tokens; as soon as enough of them are known its coarse windows run too,
then the fine passes and the codec. `Engine` is the low-level face: `submit` a request, call `step`
until it says that nothing is left. `submit` and cancelling are safe from any thread; `step` is for
one thread at a time (`driver.Driver` is such a thread).

An exception may be thrown into a step from outside (`errors.is_asynchronous`). It goes to whoever
steps, and the next step goes on: the batch that was being run is run once more, and where the
exception came in the middle of book-keeping, every utterance begins again from its request: that
makes the same.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NoReturn

from bark_fast.checkpoint.config import Config
from bark_fast.engine.decoder import StepOutput
from bark_fast.engine.kv_cache import PagePool
from bark_fast.engine.runner import Runner, Wait, is_out_of_memory
from bark_fast.engine.scheduler import Batch, Phase, Policy, ScheduledTask, Scheduler
from bark_fast.engine.stats import Counters, EngineStats
from bark_fast.engine.utterance import Outcome, Progress, Result, Utterance, check_pages
from bark_fast.errors import is_asynchronous
from bark_fast.process import HomeProcess, refuse_to_pickle
from bark_fast.request import Request
from bark_fast.types import STAGES, Speech, Stage

Task = ScheduledTask[Utterance]


class Engine:
    """Many utterances at once, each as if it were alone."""

    def __init__(
        self, runner: Runner, pools: Mapping[Stage, PagePool], model_config: Config
    ) -> None:
        self.config = model_config
        self.runner = runner
        self._pools = pools
        self._scheduler: Scheduler[Utterance] = Scheduler(
            pools, runner.config.limits, max_running=runner.config.max_running
        )
        self._counters = Counters(STAGES)
        self._submitting = threading.Lock()
        self._stepping = threading.Lock()
        self._inbox: deque[Utterance] = deque()
        self._cancelled: deque[Utterance] = deque()
        # The tasks of each utterance in the stages that it is in.
        self._active: dict[Utterance, dict[Stage, Task]] = {}
        self._under_way: deque[tuple[Batch[Utterance], float, Wait]] = deque()
        self._n_submitted = self._n_admitted = 0
        self._torn = False  # a step did not come to its end
        self._ending: tuple[Utterance, Speech | BaseException] | None = None
        self.home = HomeProcess("an engine", self._is_idle)

    # The face ----------------------------------------------------------------------------------

    def __reduce__(self) -> NoReturn:
        refuse_to_pickle("an engine")

    def submit(
        self, request: Request, *, progress: Progress | None = None, urgent: bool = False
    ) -> Future[Speech]:
        """Queue a request. Cancelling the future, in whatever state, cancels the utterance.

        Args:
            progress: called with (stage, steps done, steps at most) from the thread that steps.
            urgent: someone waits for the audio; the "auto" policy is "latency" meanwhile.

        Raises:
            InputError: its windows are longer than all the pages that there are.
            ProcessError: this is a fork of the engine's process that cannot use it.
        """
        self.home.check()
        check_pages(request, self._pools["coarse"])
        with self._submitting:
            utterance = Utterance.start(
                request, self.config, self.runner.config, self.runner.device,
                order=self._n_submitted, on_progress=progress, urgent=urgent,
            )  # fmt: skip
            self._n_submitted += 1
            self._inbox.append(utterance)
        utterance.future.add_done_callback(
            lambda future: self._cancelled.append(utterance) if future.cancelled() else None
        )
        return utterance.future

    def cancel(self, future: Future[Speech]) -> bool:
        """Give up a request; return False if it has finished already.

        Its pages come back at once, or when the batch that it is in has run.
        """
        return future.cancel()

    @property
    def has_work(self) -> bool:
        """True if a step would do anything."""
        return bool(self._inbox or self._active or self._under_way or self._cancelled)

    def step(self) -> bool:
        """Run one batch; return True if there is more to do."""
        with self._turn():
            start = time.perf_counter()
            self._admit()
            batch = self._scheduler.schedule(self.policy)
            if batch is not None:
                self._run(batch)
            is_full = len(self._under_way) > self.runner.config.depth
            if self._under_way and (batch is None or is_full):
                self._advance(*self._under_way.popleft(), idle=batch is None)
            # What ended here may have been cancelled meanwhile: then nothing more will come of it.
            self._take_cancelled()
            self._counters.busy_s += time.perf_counter() - start
        return self.has_work

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """Let no batch be under way, and none begin."""
        with self._turn():
            while self._under_way:
                self._advance(*self._under_way.popleft())
            yield

    @property
    def policy(self) -> Policy:
        """The policy of the next step: the one that was asked for, or what "auto" means now."""
        if self.runner.config.policy is not None:
            return self.runner.config.policy
        return "latency" if any(u.urgent for u in self._active) else "throughput"

    @property
    def used_pages(self) -> int:
        """Pages of keys and values that have an owner; none when nothing is left to do."""
        return sum(pool.used_pages for pool in self._pools.values())

    def stats(self) -> EngineStats:
        """Return what has been done so far and what waits; cheap, from any thread."""
        waiting = self._scheduler.waiting()
        self._counters.submitted = self._n_submitted
        return self._counters.snapshot(
            waiting={
                stage: sum(n for phase, n in waiting.items() if phase.stage == stage)
                + (len(self._inbox) if stage == "semantic" else 0)
                for stage in STAGES
            },
            pools=self._pools,
        )

    def fail_all(self, error: BaseException) -> None:
        """Give up everything that was submitted; every caller gets `error`."""
        with self._stepping:
            self._torn = True
            while self._inbox:
                utterance = self._inbox.popleft()
                self._n_admitted = utterance.order + 1
                self._active[utterance] = {}
            for utterance in self._active:
                utterance.end(error)
            self._begin_again()
            self._torn = False

    # The loop ----------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self.home.check()
        with self._stepping, self.runner.on_device():
            if self._torn:
                self._begin_again()
            self._torn = True
            yield
            self._torn = False

    def _begin_again(self) -> None:
        """Begin every utterance from its request, after a step that was cut short anywhere.

        This may be cut short too, and is done again then.
        """
        self.runner.wait()
        self._under_way.clear()
        if self._ending is not None:
            utterance, result = self._ending
            self._active.setdefault(utterance, {})
            utterance.end(result)
            self._ending = None
        for pool in self._pools.values():
            pool.reset()
        self._scheduler = Scheduler(
            self._pools, self._scheduler.limits, max_running=self.runner.config.max_running
        )
        for utterance in list(self._active):
            self._active[utterance] = {}
            if not utterance.future.done():
                self._start(utterance, Utterance.begin_again)
                continue
            del self._active[utterance]
            self._counters.count_end(utterance.future)
        self._take_cancelled()

    def _is_idle(self) -> bool:
        """Return True if a copy of this engine in a fork could be used: nothing is under way."""
        busy = self.has_work or self._submitting.locked() or self._stepping.locked()
        return self.runner.device.type == "cpu" and not busy

    def _admit(self) -> None:
        """Take what was submitted and what was cancelled since the last step."""
        while self._inbox:
            utterance = self._inbox[0]
            is_new = utterance not in self._active
            if is_new:
                self._n_admitted = utterance.order + 1
                self._active[utterance] = {}
            self._inbox.popleft()  # it is in one of the two at any moment
            if is_new:
                self._start(utterance, Utterance.begin)
        self._take_cancelled()

    def _start(self, utterance: Utterance, begin: Callable[[Utterance], Outcome]) -> None:
        try:
            self._follow(utterance, begin(utterance))
        except Exception as error:
            if is_asynchronous(error):
                raise
            self._fail(utterance, error)

    def _take_cancelled(self) -> None:
        for _ in range(len(self._cancelled)):
            utterance = self._cancelled.popleft()
            if utterance in self._active:
                self._counters.cancelled += 1
                self._drop(utterance)
            elif utterance.order >= self._n_admitted:
                self._cancelled.append(utterance)  # still in the inbox

    def _run(self, batch: Batch[Utterance]) -> None:
        """Enqueue a batch."""
        start = time.perf_counter()
        try:
            self._move_pages(batch)
            wait = self.runner.launch(batch)
        except BaseException as error:
            self._stopped(batch, error)
        else:
            self._under_way.append((batch, start, wait))

    def _move_pages(self, batch: Batch[Utterance]) -> None:
        """Bring pages that change hands to the host, and back those that have found new ones."""
        for task, pages in batch.evicted:
            self._counters.preempted += 1
            try:
                self.runner.save_pages(task, pages)
            except Exception as error:  # no memory left on the host, say
                if is_asynchronous(error):
                    raise
                self._fail(task.owner, error)
        for task in batch.restored:
            self.runner.restore_pages(task)

    def _advance(
        self, batch: Batch[Utterance], start: float, wait: Wait, *, idle: bool = False
    ) -> None:
        """Wait for a batch, and let its utterances go on with what it made; `idle` if nothing else
        can be run meanwhile."""
        try:
            if idle and self._has_all_that_could_join(batch):
                self.runner.run_ahead(batch)
            results = wait()
        except BaseException as error:
            self._stopped(batch, error)
            return
        self._scheduler.complete(batch)
        stop = time.perf_counter()
        self._counters.count_batch(batch.phase.stage, len(batch.tasks), stop - start)
        for task, result in zip(batch.tasks, results, strict=True):
            task.alone = False
            utterance = task.owner
            if utterance not in self._active:
                self._scheduler.release(task)
                continue
            try:
                utterance.ran(batch.phase.stage, start, stop)
                self._advance_one(utterance, task, result)
            except Exception as error:
                if is_asynchronous(error):
                    raise
                self._fail(utterance, error)

    def _has_all_that_could_join(self, batch: Batch[Utterance]) -> bool:
        """Return True if the batch is the last, and nobody has come or gone since it was formed."""
        waiting = self._under_way or self._inbox or self._scheduler.waiting()[batch.phase]
        return not waiting and all(task.owner in self._active for task in batch.tasks)

    def _advance_one(self, utterance: Utterance, task: Task, result: Result) -> None:
        stage, n_prefilled = task.stage, 0
        if task.ready.phase.is_prefill:
            n_prefilled = task.ready.cost - task.n_shared * self._pools[stage].page_size
        outcome = utterance.advance(stage, result)
        n_tokens = len(result.tokens) if isinstance(result, StepOutput) else utterance.n_frames
        self._counters.count_tokens(stage, n_tokens, n_prefilled)
        utterance.report(stage)
        self._follow(utterance, outcome)

    def _follow(self, utterance: Utterance, outcome: Outcome) -> None:
        """Queue what the utterance is ready for, or hand out what it has become."""
        if isinstance(outcome, Speech):
            self._finish(utterance, outcome)
            return
        tasks = self._active[utterance]
        for stage in [stage for stage in tasks if utterance.has_ended(stage)]:
            self._scheduler.release(tasks.pop(stage))
        for ready in outcome:
            task = tasks.setdefault(
                ready.phase.stage, ScheduledTask(utterance.order, utterance, ready)
            )
            if ready.phase.is_prefill:
                self._scheduler.release(task)  # what its pages held is of no use any more
            task.ready = ready
            self._scheduler.add(task)

    # Ends --------------------------------------------------------------------------------------

    def _finish(self, utterance: Utterance, speech: Speech) -> None:
        self._ending = utterance, speech
        self._drop(utterance)
        self._counters.finished += 1
        if utterance.request.last_stage == "codec":
            self._counters.spoke(speech.duration_s, time.perf_counter() - utterance.submitted_at)
        utterance.end(speech)
        self._ending = None

    def _fail(self, utterance: Utterance, error: BaseException) -> None:
        self._ending = utterance, error
        self._drop(utterance)
        self._counters.failed += 1
        utterance.end(error)
        self._ending = None

    def _drop(self, utterance: Utterance) -> None:
        """Forget an utterance. Tasks that are being run are released when their batch is done."""
        for task in self._active.pop(utterance, {}).values():
            if not task.running:
                self._scheduler.remove(task)
                self._scheduler.release(task)

    def _put_back(self, batch: Batch[Utterance]) -> None:
        """Make the tasks of a batch that has not run ready as before."""
        self._scheduler.complete(batch)
        for task in batch.restored:
            if task.saved is not None:
                self._scheduler.take_back(task)
        for task in batch.tasks:
            is_active = task.owner in self._active
            if batch.phase.is_prefill or not is_active:
                # The prompt is nowhere, and whoever shares its pages is in this batch too.
                self._scheduler.release(task, forget=batch.phase.is_prefill)
            if is_active:
                if batch.phase == Phase.FINE:  # which takes its codes while it runs
                    task.ready = task.owner.begin_fine_again()
                self._scheduler.add(task)

    def _stopped(self, batch: Batch[Utterance], error: BaseException) -> None:
        """Treat a batch that raised: as its failure, or put it back if `error` is not about it."""
        if isinstance(error, Exception) and not is_asynchronous(error):
            self._batch_failed(batch, error)
            return
        self.runner.wait()
        # Pages that were not saved in time are lost; then everything begins again.
        if all(task.saved is not None for task, _ in batch.evicted):
            self._put_back(batch)
            self._torn = False
        raise error

    def _batch_failed(self, batch: Batch[Utterance], error: Exception) -> None:
        """Retry a batch that raised, in parts.

        If it was too large for the memory, batches are smaller from now on. Otherwise one of its
        tasks is at fault, and running each alone tells which.
        """
        self._put_back(batch)
        too_large = is_out_of_memory(error)
        if too_large:
            self.runner.free_memory()
        if len(batch.tasks) == 1:
            if batch.tasks[0].owner in self._active:
                self._fail(batch.tasks[0].owner, error)
        elif too_large:
            self._scheduler.shrink(batch)
        else:
            for task in batch.tasks:
                task.alone = True
