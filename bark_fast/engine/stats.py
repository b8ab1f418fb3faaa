"""Statistics of an engine, counted as it goes and read in one snapshot."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from bark_fast.engine.kv_cache import PagePool
from bark_fast.types import Stage

_RECENT = 1024  # latencies kept for percentiles


@dataclass(frozen=True)
class StageStats:
    """One stage's work.

    Attributes:
        waiting: utterances that are ready for it and not being run.
        batches: run so far; `utterances_a_batch`: in them, on average.
        tokens: made so far (codec: frames); `prefill_tokens`: of prompts, run so far.
        busy_s: time with a batch of this stage under way. Batches of different stages overlap.
        tokens_per_s: `tokens` by `busy_s`.
        used_pages, total_pages: of its keys and values; 0 where a stage has none.
    """

    waiting: int
    batches: int
    utterances_a_batch: float
    tokens: int
    prefill_tokens: int
    busy_s: float
    tokens_per_s: float
    used_pages: int
    total_pages: int


@dataclass(frozen=True)
class EngineStats:
    """A snapshot.

    Attributes:
        submitted, finished, failed, cancelled: utterances so far; `active`: the others.
        preempted: how often an utterance had its pages taken for a while.
        audio_s: seconds of audio made; `busy_s`: time with anything under way.
        audio_s_per_s: the first by the second; its inverse is the real-time factor.
        time_to_audio_s: from submission to samples, of the last utterances made into audio: "p50",
            "p95", "max"; empty before the first.
        stages: "semantic", "coarse", "fine", "codec".
    """

    submitted: int
    finished: int
    failed: int
    cancelled: int
    active: int
    preempted: int
    audio_s: float
    busy_s: float
    audio_s_per_s: float
    time_to_audio_s: Mapping[str, float]
    stages: Mapping[str, StageStats]


@dataclass
class _StageCounters:
    batches: int = 0
    utterances: int = 0
    tokens: int = 0
    prefill_tokens: int = 0
    busy_s: float = 0.0

    def snapshot(self, waiting: int, pool: PagePool | None) -> StageStats:
        return StageStats(
            waiting=waiting,
            batches=self.batches,
            utterances_a_batch=self.utterances / max(1, self.batches),
            tokens=self.tokens,
            prefill_tokens=self.prefill_tokens,
            busy_s=self.busy_s,
            tokens_per_s=self.tokens / self.busy_s if self.busy_s else 0.0,
            used_pages=0 if pool is None else pool.used_pages,
            total_pages=0 if pool is None else pool.n_pages,
        )


class Counters:
    """The running totals behind `EngineStats`."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = {stage: _StageCounters() for stage in stages}
        self.submitted = self.finished = self.failed = self.cancelled = self.preempted = 0
        self.audio_s = self.busy_s = 0.0
        self._to_audio_s: deque[float] = deque(maxlen=_RECENT)

    def count_batch(self, stage: Stage, n_utterances: int, busy_s: float) -> None:
        """Count a batch that has run."""
        counters = self._stages[stage]
        counters.batches += 1
        counters.utterances += n_utterances
        counters.busy_s += busy_s

    def count_tokens(self, stage: Stage, n_tokens: int, n_prefilled: int) -> None:
        """Count what a batch made of one utterance, and what it ran of its prompt."""
        self._stages[stage].tokens += n_tokens
        self._stages[stage].prefill_tokens += n_prefilled

    def spoke(self, audio_s: float, to_audio_s: float) -> None:
        """Count an utterance that was to be heard and has finished."""
        self.audio_s += audio_s
        self._to_audio_s.append(to_audio_s)

    def count_end(self, future: Future[Any]) -> None:
        """Count an utterance by the future that it has ended with."""
        if future.cancelled():
            self.cancelled += 1
        elif future.exception(timeout=0) is None:
            self.finished += 1
        else:
            self.failed += 1

    def snapshot(
        self, waiting: Mapping[Stage, int], pools: Mapping[Stage, PagePool]
    ) -> EngineStats:
        """Return the totals, with what waits for each stage and the use of its pages."""
        ordered = sorted(self._to_audio_s)

        def percentile(p: float) -> float:
            return ordered[min(len(ordered) - 1, int(p * len(ordered)))]

        return EngineStats(
            submitted=self.submitted,
            finished=self.finished,
            failed=self.failed,
            cancelled=self.cancelled,
            active=self.submitted - self.finished - self.failed - self.cancelled,
            preempted=self.preempted,
            audio_s=self.audio_s,
            busy_s=self.busy_s,
            audio_s_per_s=self.audio_s / self.busy_s if self.busy_s else 0.0,
            time_to_audio_s=(
                {"p50": percentile(0.5), "p95": percentile(0.95), "max": ordered[-1]}
                if ordered
                else {}
            ),
            stages={
                stage: counters.snapshot(waiting[stage], pools.get(stage))
                for stage, counters in self._stages.items()
            },
        )
