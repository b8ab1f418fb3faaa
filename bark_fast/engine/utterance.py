"""One utterance on its way through the stages, and what each result makes it ready for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch

from bark_fast.checkpoint.config import Config
from bark_fast.engine.decoder import StepOutput
from bark_fast.engine.kv_cache import PagePool, prompt_keys
from bark_fast.engine.options import EngineConfig
from bark_fast.engine.scheduler import Phase, Ready
from bark_fast.errors import InputError, ModelError
from bark_fast.kernels import NO_TOKEN
from bark_fast.request import Request
from bark_fast.stages.causal import CausalTask
from bark_fast.stages.coarse import CoarseTask, ids_to_codes, longest_window
from bark_fast.stages.fine import FineTask
from bark_fast.stages.semantic import SemanticTask, build_prompt
from bark_fast.types import FloatArray, IntArray, Speech, Stage

Progress = Callable[[Stage, int, int], None]
"""Called with (stage, steps done, steps at most) while an utterance is made."""

Result = StepOutput | FloatArray | IntArray | None
"""The result of a batch for one utterance: of steps, of the codec, of the last fine pass (the
task's codes), of another one."""

Outcome = tuple[Ready, ...] | Speech
"""The work that an utterance is ready for next, or the speech that it has become."""

_NO_SAMPLES: FloatArray = np.empty(0, dtype=np.float32)
_PREFILL = {"semantic": Phase.SEMANTIC_PREFILL, "coarse": Phase.COARSE_PREFILL}
_DECODE = {"semantic": Phase.SEMANTIC_DECODE, "coarse": Phase.COARSE_DECODE}


@dataclass(eq=False)
class Utterance:
    """A request and its task in each stage. It knows no scheduler and holds no pages.

    Attributes:
        order: of arrival.
        future: what the caller waits for; cancelling it cancels the utterance.
        urgent: someone waits for its audio.
        fine: None until the coarse codes are known; `fine_tokens`, int64 [n_fine, F], are empty
            until the last pass.
        spans: when the first batch of each stage began and the last one ended, in seconds.
    """

    request: Request
    config: Config
    engine: EngineConfig
    device: torch.device
    order: int
    future: Future[Speech]
    on_progress: Progress | None
    urgent: bool
    submitted_at: float
    semantic: SemanticTask
    coarse: CoarseTask
    fine_tokens: IntArray
    fine: FineTask | None = None
    spans: dict[Stage, tuple[float, float]] = field(default_factory=dict)
    _coarse_is_ready: bool = False  # and has not been run

    @classmethod
    def start(
        cls,
        request: Request,
        config: Config,
        engine: EngineConfig,
        device: torch.device,
        *,
        order: int = 0,
        on_progress: Progress | None = None,
        urgent: bool = False,
    ) -> Utterance:
        """Return the utterance before its first step."""
        return cls(
            request=request,
            config=config,
            engine=engine,
            device=device,
            order=order,
            future=Future(),
            on_progress=on_progress,
            urgent=urgent,
            submitted_at=time.perf_counter(),
            semantic=_semantic_task(request, config),
            coarse=_coarse_task(request, config),
            fine_tokens=_no_codes(config),
        )

    def begin(self) -> Outcome:
        """Return the first work."""
        if self.request.given_codes is not None:
            return self._begin_with_codes(self.request.given_codes)
        if self.request.given is None:
            return (self._causal_work("semantic"),)
        self.coarse.extend(self.request.given, complete=True)
        return self._continue_coarse()

    def begin_again(self) -> Outcome:
        """Forget what was drawn, and return the first work; the same will be drawn again."""
        self.semantic = _semantic_task(self.request, self.config)
        self.coarse = _coarse_task(self.request, self.config)
        self.fine, self.fine_tokens = None, _no_codes(self.config)
        self.spans, self._coarse_is_ready = {}, False
        return self.begin()

    def begin_fine_again(self) -> Ready:
        """Return the first pass of the fine stage, after one that may have been taken in part."""
        self.fine = self._new_fine_task()
        return Ready(Phase.FINE, group=self.fine.codebook)

    def advance(self, stage: Stage, result: Result) -> Outcome:
        """Take the result of a batch of `stage` and return what it makes the utterance ready for.

        Work that was returned before and has not been run stays ready.

        Raises:
            ModelError: the result is no tokens or samples, because the model gave no numbers.
        """
        if stage == "fine":
            return self._after_fine_pass(result)
        if stage == "codec":
            samples = cast(FloatArray, result)
            if not np.isfinite(samples).all():
                raise self._no_numbers(stage, "samples")
            return self._speech(samples)
        assert isinstance(result, StepOutput)
        if NO_TOKEN in result.tokens[-1:]:
            raise self._no_numbers(stage, "logits")
        self.causal(stage).accept(result.tokens, ended=result.ended)
        if stage == "coarse":
            self._coarse_is_ready = False
            return self._continue_coarse()
        return self._after_semantic(result)

    def has_ended(self, stage: Stage) -> bool:
        """True if nothing is left to do in that stage."""
        if stage == "semantic":
            return self.semantic.finish_reason is not None
        if stage == "coarse":
            return self.coarse.finished
        return stage == "fine" and self.fine is not None and self.fine.finished

    def causal(self, stage: Stage) -> CausalTask:
        """Return the task in a causal stage."""
        return self.semantic if stage == "semantic" else self.coarse

    @property
    def fine_task(self) -> FineTask:
        """The task in the fine stage, which has begun."""
        assert self.fine is not None
        return self.fine

    @property
    def n_frames(self) -> int:
        """Frames of the coarse tokens so far."""
        return len(self.coarse.tokens) // self.config.coarse_rules.n_coarse_codebooks

    def report(self, stage: Stage) -> None:
        """Tell the caller how far that stage is."""
        if self.on_progress is not None:
            self.on_progress(stage, *self._progress(stage))

    def _progress(self, stage: Stage) -> tuple[int, int]:
        """Return (steps done, steps at most)."""
        if stage == "semantic":
            done = len(self.semantic.tokens)
            # Where the text ends is not known before.
            return done, done if self.has_ended(stage) else self.semantic.limit
        if stage == "coarse":
            return len(self.coarse.tokens), self.coarse.n_tokens
        if stage == "fine" and self.fine is not None:
            return self.fine.passes_done, self.fine.passes
        return 1, 1

    def ran(self, stage: Stage, start: float, stop: float) -> None:
        """Take note that a batch of that stage with this utterance took from `start` to `stop`."""
        first, _ = self.spans.get(stage, (start, stop))
        self.spans[stage] = first, stop

    def end(self, result: Speech | BaseException) -> None:
        """Hand the speech, or the error, to whoever waits."""
        # The future may have been cancelled at this very moment.
        with suppress(InvalidStateError):
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

    def _after_semantic(self, output: StepOutput) -> Outcome:
        ended = self.has_ended("semantic")
        if self.request.last_stage == "semantic":
            return self._speech() if ended else (self._causal_work("semantic"),)
        self.coarse.extend(output.tokens, complete=ended)
        more = () if self._coarse_is_ready else self._continue_coarse()
        if ended or isinstance(more, Speech):
            return more
        return (self._causal_work("semantic"), *more)

    def _continue_coarse(self) -> Outcome:
        """Return the next coarse steps if they can be run, or what follows the last."""
        if self.coarse.finished:
            return self._speech() if self.request.last_stage == "coarse" else self._begin_fine()
        if not self.coarse.open:
            return ()
        self._coarse_is_ready = True
        return (self._causal_work("coarse"),)

    def _begin_with_codes(self, codes: IntArray) -> Outcome:
        if self.request.last_stage == "fine":
            return self._begin_fine()
        self.fine_tokens = codes
        return (Ready(Phase.CODEC, cost=codes.shape[1]),)

    def _begin_fine(self) -> Outcome:
        task = self._new_fine_task()
        if not task.n_frames:
            return self._speech()  # nothing was said
        self.fine = task
        return (Ready(Phase.FINE, group=task.codebook),)

    def _new_fine_task(self) -> FineTask:
        given = self.request.given_codes
        codes = self._coarse_codes() if given is None else given
        return FineTask(codes, self.request.voice, self.request.fine, self.config, self.device)

    def _after_fine_pass(self, result: Result) -> Outcome:
        if result is None:
            return (Ready(Phase.FINE, group=self.fine_task.codebook),)
        codes = cast(IntArray, result)
        if (codes == NO_TOKEN).any():  # in padding too, which the other frames attend to
            raise self._no_numbers("fine", "logits")
        self.fine_tokens = np.ascontiguousarray(self.fine_task.new_frames(codes))
        if self.request.last_stage == "fine":
            return self._speech()
        return (Ready(Phase.CODEC, cost=self.fine_task.n_frames),)

    def _no_numbers(self, stage: Stage, what: str) -> ModelError:
        said = f" for text {self.request.text!r}" if self.request.text else ""
        return ModelError(
            f"the {stage} stage gave {what} with NaN or infinity{said}: its weights are damaged, "
            "or numbers grew too large for the dtype"
        )

    def _causal_work(self, stage: Stage) -> Ready:
        """Return the next steps of a causal task, or its prompt."""
        task = self.causal(stage)
        if task.prefilled:
            positions = task.positions_after(self.engine.reserved_steps(stage))
            return Ready(_DECODE[stage], positions=positions)
        keys = prompt_keys(task.prompt, self.engine.page_sizes[stage])
        return Ready(_PREFILL[stage], cost=task.length, positions=task.length, keys=keys)

    def _coarse_codes(self) -> IntArray:
        return ids_to_codes(self.coarse.tokens, self.config)

    def _speech(self, samples: FloatArray = _NO_SAMPLES) -> Speech:
        assert self.semantic.finish_reason is not None
        return Speech(
            samples=samples,
            sample_rate_hz=self.config.sample_rate_hz,
            text=self.request.text,
            semantic_tokens=np.array(self.semantic.tokens, dtype=np.int64),
            coarse_tokens=self._coarse_codes(),
            fine_tokens=self.fine_tokens,
            timings={stage: stop - start for stage, (start, stop) in self.spans.items()},
            finish_reason=self.semantic.finish_reason,
            seed=self.request.seed,
        )


def _no_codes(config: Config) -> IntArray:
    return np.empty((config.fine_rules.n_fine_codebooks, 0), dtype=np.int64)


def _coarse_task(request: Request, config: Config) -> CoarseTask:
    rules = request.coarse_rules
    return CoarseTask.start(
        request.voice,
        request.coarse,
        config if rules is None else replace(config, coarse_rules=rules),
    )


def _semantic_task(request: Request, config: Config) -> SemanticTask:
    if request.given is not None or request.given_codes is not None:
        return SemanticTask(
            sampling=request.semantic, tokens=list(request.given or ()), finish_reason="given"
        )
    history = [] if request.voice is None else request.voice.semantic_prompt.tolist()
    return SemanticTask(
        sampling=request.semantic,
        prompt=build_prompt(request.text_ids, history, config.semantic_rules),
        limit=request.max_semantic_tokens,
    )


def check_pages(request: Request, pool: PagePool) -> None:
    """Check that the pages of the coarse stage hold windows that are not the checkpoint's own.

    Raises:
        InputError: they do not; the utterance would wait for ever.
    """
    if request.coarse_rules is None:
        return
    needed = longest_window(request.coarse_rules)
    if pool.pages_for(needed) > pool.n_pages:
        raise InputError(
            f"max_coarse_history + sliding_window_len must fit into the {pool.n_pages} pages of "
            f"{pool.page_size} positions that kv_cache_gib leaves for coarse tokens, got {needed} "
            "positions"
        )
