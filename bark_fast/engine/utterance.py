"""One utterance on its way through the stages."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from bark_fast.checkpoint.config import Config
from bark_fast.engine.request import Request
from bark_fast.engine.scheduler import Job
from bark_fast.stages.causal import CausalTask
from bark_fast.stages.coarse import CoarseTask, ids_to_codes
from bark_fast.stages.draws import Draw
from bark_fast.stages.fine import FineTask
from bark_fast.stages.semantic import SemanticTask, build_prompt
from bark_fast.types import FloatArray, IntArray, Speech

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps at most) while an utterance is made."""


@dataclass(eq=False)
class Utterance:
    """A request, its tasks in the stages, and its jobs in the scheduler.

    Attributes:
        order: of arrival.
        future: what the caller waits for; cancelling it cancels the utterance.
        urgent: someone waits for its audio.
        fine: None until the coarse codes are known; `fine_tokens`, [n_fine, F], empty until the
            last pass.
        jobs: by stage, for as long as the stage is not over.
        gone: it failed or was cancelled; jobs that are being run are dropped when they are done.
    """

    request: Request
    order: int
    future: Future[Speech]
    progress: Progress | None
    urgent: bool
    submitted_at: float
    semantic: SemanticTask
    coarse: CoarseTask
    fine_tokens: IntArray
    fine: FineTask | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    gone: bool = False
    _spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        request: Request,
        config: Config,
        *,
        order: int,
        future: Future[Speech],
        progress: Progress | None,
        urgent: bool,
        submitted_at: float,
    ) -> Utterance:
        """The utterance before its first step."""
        return cls(
            request=request,
            order=order,
            future=future,
            progress=progress,
            urgent=urgent,
            submitted_at=submitted_at,
            semantic=_semantic_task(request, config),
            coarse=CoarseTask.start(request.voice, Draw(request.coarse, request.seed), config),
            fine_tokens=np.empty((config.fine_rules.n_fine_codebooks, 0), dtype=np.int64),
        )

    def causal(self, stage: str) -> CausalTask:
        """The task in a causal stage."""
        return self.semantic if stage == "semantic" else self.coarse

    def ran(self, stage: str, start: float, stop: float) -> None:
        """A batch of that stage with this utterance took from `start` to `stop`."""
        first, _ = self._spans.get(stage, (start, stop))
        self._spans[stage] = first, stop

    def report(self, stage: str) -> None:
        """Tell who wants to know how far the stage is."""
        if self.progress is None:
            return
        if stage == "semantic":
            done = len(self.semantic.tokens)
            # Where it ended is not known before.
            over = self.semantic.finish_reason is not None
            self.progress(stage, done, done if over else self.semantic.limit)
        elif stage == "coarse":
            self.progress(stage, len(self.coarse.tokens), self.coarse.n_tokens)
        elif stage == "fine" and self.fine is not None:
            self.progress(stage, self.fine.passes_done, self.fine.passes)
        elif stage == "codec":
            self.progress(stage, 1, 1)

    def codes(self, config: Config) -> IntArray:
        """The coarse codes, [n_coarse, F]."""
        return ids_to_codes(self.coarse.tokens, config)

    def speech(self, samples: FloatArray, config: Config) -> Speech:
        """What the caller gets."""
        assert self.semantic.finish_reason is not None
        return Speech(
            samples=samples,
            sample_rate_hz=config.sample_rate_hz,
            text=self.request.text,
            semantic_tokens=np.array(self.semantic.tokens, dtype=np.int64),
            coarse_tokens=self.codes(config),
            fine_tokens=self.fine_tokens,
            timings={stage: stop - start for stage, (start, stop) in self._spans.items()},
            finish_reason=self.semantic.finish_reason,
            seed=self.request.seed,
        )


def _semantic_task(request: Request, config: Config) -> SemanticTask:
    draw = Draw(request.semantic, request.seed, request.min_eos_p, request.min_semantic_tokens)
    if request.given is not None:
        return SemanticTask(draw=draw, tokens=list(request.given), finish_reason="given")
    history = [] if request.voice is None else request.voice.semantic_prompt.tolist()
    return SemanticTask(
        draw=draw,
        prompt=build_prompt(request.text_ids, history, config.semantic_rules),
        limit=request.max_semantic_tokens,
    )
