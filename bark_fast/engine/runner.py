"""Runs batches on the device: each stage with its model, and pages that change hands.

The engine decides; this is the only part of it that touches tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.ambient import exact_float32, settled
from bark_fast.engine.decoder import Collect
from bark_fast.engine.options import EngineConfig
from bark_fast.engine.scheduler import Batch, Phase, ScheduledTask
from bark_fast.engine.utterance import Result, Utterance
from bark_fast.models.transfer import mark, to_device, to_host_async
from bark_fast.stages.causal import CausalTask
from bark_fast.stages.fine import FineTask
from bark_fast.types import Stage

Wait = Callable[[], Sequence[Result]]
"""Waits for a batch and returns a result for each of its tasks."""


class CausalRunner(Protocol):
    """A causal stage with its cache; see `decoder.Decoder`."""

    def prefill(self, tasks: list[CausalTask], pages: list[list[int]]) -> Collect: ...

    def decode(self, tasks: list[CausalTask], pages: list[list[int]], n_steps: int) -> Collect: ...

    def run_ahead(self, tasks: list[CausalTask], pages: list[list[int]], n_steps: int) -> None: ...

    def warm_ups(self) -> Sequence[Callable[[], object]]: ...

    def save(self, pages: list[int]) -> Any: ...

    def restore(self, pages: list[int], saved: Any) -> None: ...


class FineRunner(Protocol):
    """The fine stage; see `fine_passes.FinePasses`."""

    def run(self, tasks: list[FineTask]) -> None: ...

    def warm_ups(self) -> Sequence[Callable[[], object]]: ...


class CodecRunner(Protocol):
    """The codec; see `stages.codec.CodecStage`."""

    def run(self, codes: list[Tensor]) -> list[Tensor]: ...

    def warm_ups(self) -> Sequence[Callable[[], object]]: ...


def do_nothing(stage: Stage) -> None:
    """Do nothing: the weights of every stage stay on the device."""


@dataclass(frozen=True)
class Runner:
    """Runs a batch of any stage.

    Attributes:
        before_stage: called with a stage's name before it computes anything; `offload` brings its
            weights then.
    """

    semantic: CausalRunner
    coarse: CausalRunner
    fine: FineRunner
    codec: CodecRunner
    config: EngineConfig
    device: torch.device
    before_stage: Callable[[Stage], None] = do_nothing

    def causal(self, stage: Stage) -> CausalRunner:
        """Return the runner of a causal stage."""
        return self.semantic if stage == "semantic" else self.coarse

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Make this runner's device and stream those of the calling thread, whatever it has set."""
        # Triton launches on the current device, whatever device its tensors are on.
        # And all that threads enqueue by turns has to be in one order: one stream for all.
        stream = (
            torch.cuda.stream(torch.cuda.default_stream(self.device))
            if self.device.type == "cuda"
            else nullcontext()
        )
        with settled(inference=True), stream, kernels.cpu_threads(self.config.threads):
            yield

    def _exactly(self) -> AbstractContextManager[None]:
        """Return the context in which work for the device is enqueued."""
        return exact_float32() if self.device.type == "cuda" else nullcontext()

    def launch(self, batch: Batch[Utterance]) -> Wait:
        """Enqueue the batch."""
        with self._exactly():
            return self._launch(batch)

    def _launch(self, batch: Batch[Utterance]) -> Wait:
        stage = batch.phase.stage
        utterances = [task.owner for task in batch.tasks]
        self.before_stage(stage)
        if batch.phase == Phase.CODEC:
            return _arrays(self.codec.run([self._codes(u) for u in utterances]))
        if batch.phase == Phase.FINE:
            passes = [u.fine_task for u in utterances]
            self.fine.run(passes)
            done = mark(self.device)
            codes = _arrays([task.codes if task.finished else None for task in passes])

            def wait() -> Sequence[Result]:
                done()
                return codes()

            return wait
        runner = self.causal(stage)
        tasks = [u.causal(stage) for u in utterances]
        pages = [task.pages for task in batch.tasks]
        if batch.phase.is_prefill:
            for task, scheduled in zip(tasks, batch.tasks, strict=True):
                task.cached = scheduled.n_shared * self.config.page_sizes[stage]
            return runner.prefill(tasks, pages)
        left = max(task.limit - len(task.tokens) for task in tasks)
        return runner.decode(tasks, pages, min(self.config.steps[stage], left))

    def run_ahead(self, batch: Batch[Utterance]) -> None:
        """Enqueue the next steps too of a batch that was launched last, if it is one of steps."""
        stage = batch.phase.stage
        decodes = batch.phase in (Phase.SEMANTIC_DECODE, Phase.COARSE_DECODE)
        if decodes and self.config.depth:
            tasks = [task.owner.causal(stage) for task in batch.tasks]
            pages = [task.pages for task in batch.tasks]
            with self._exactly():
                self.causal(stage).run_ahead(tasks, pages, self.config.steps[stage])

    def _codes(self, utterance: Utterance) -> Tensor:
        """Return all codebooks of an utterance on the device, int64 [n_fine, F]."""
        if utterance.fine is not None:
            return utterance.fine.new_frames(utterance.fine.codes)
        return to_device(torch.from_numpy(utterance.fine_tokens), device=self.device)

    def save_pages(self, task: ScheduledTask[Utterance], pages: list[int]) -> None:
        """Keep the content of pages that are taken from a task."""
        task.saved = self.causal(task.stage).save(pages)

    def restore_pages(self, task: ScheduledTask[Utterance]) -> None:
        """Put the kept content of a task into the pages that it has now."""
        self.causal(task.stage).restore(task.pages, task.saved)
        task.saved = None

    def warm_ups(self) -> list[Callable[[], None]]:
        """Return a call for everything that can be captured, or planned, in advance."""

        def warm_up(stage: Stage, prepare: Callable[[], object]) -> None:
            self.before_stage(stage)
            with self._exactly():
                prepare()

        runners: dict[Stage, CausalRunner | FineRunner | CodecRunner] = {
            "semantic": self.semantic,
            "coarse": self.coarse,
            "fine": self.fine,
            "codec": self.codec,
        }
        return [
            partial(warm_up, stage, prepare)
            for stage, runner in runners.items()
            for prepare in runner.warm_ups()
        ]

    def wait(self) -> None:
        """Wait for all that is enqueued, so that nothing of it arrives later."""
        if self.device.type == "cuda":
            torch.cuda.default_stream(self.device).synchronize()

    def free_memory(self) -> None:
        """Give unused memory back to the device, after a batch that did not fit."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _arrays(tensors: Sequence[Tensor | None]) -> Wait:
    """Enqueue copies to the host, and return a function that waits for them.

    The arrays are the caller's own: pinned memory goes back.
    """
    copies = [None if tensor is None else to_host_async(tensor) for tensor in tensors]
    return lambda: [None if copy is None else copy().numpy().copy() for copy in copies]


def is_out_of_memory(error: Exception) -> bool:
    """True if `error` says that a device or the host has no memory left."""
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
