"""Predict the seconds of a load of requests, stage after stage, from the model of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bark_fast.checkpoint.config import Config
from bark_fast.engine.graphs import capture_sizes, padded_size
from bark_fast.stages.coarse import count_frames
from bark_fast.stages.fine import plan_windows
from bark_fast.types import Voice
from bench.cases import costs, recording
from bench.cases.recording import Operation, config_of
from bench.cases.requests import plan_coarse
from bench.cases.time_model import TimeModel
from bench.harness.workload import Utterance

MAX_BATCH, MAX_PREFILL_TOKENS, MAX_WINDOWS = 256, 8192, 8  # the engine's on CUDA
STEPS_PER_LOOK = {"semantic": 8, "coarse": 60}
# Which phases run as CUDA graphs; the others are launched from Python.
GRAPHS = {"decode": True, "prefill": True, "fine": True}
_COARSE_PROMPT = 600  # tokens: between 257 and 887, with the history
Change = Callable[[Sequence[Operation]], Sequence[Operation]]


@dataclass(frozen=True)
class Load:
    """The work of some requests that are made together.

    Attributes:
        semantic, coarse: decode steps of each request.
        prompt_tokens: of all coarse prompts.
        keys: that a coarse step sees, on average.
    """

    audio_s: float
    semantic: list[int]
    coarse: list[int]
    prompt_tokens: int
    keys: int
    windows: int
    codec_flops: float


def preset(config: Config) -> Voice:
    """Return a voice as long as those of the benchmarks' checkpoints."""
    tokens = 120
    frames = count_frames(tokens, config)
    rules = config.fine_rules
    return Voice(
        np.arange(tokens),
        np.zeros((config.coarse_rules.n_coarse_codebooks, frames), dtype=np.int64),
        np.zeros((rules.n_fine_codebooks, frames), dtype=np.int64),
    )


def load_of(utterances: Sequence[Utterance], config: Config) -> Load:
    """Return the work of the utterances."""
    voices = [None if u.voice is None else preset(config) for u in utterances]
    frames = [count_frames(u.n_tokens, config) for u in utterances]
    plans = [plan_coarse(u.n_tokens, v, config) for u, v in zip(utterances, voices, strict=True)]
    histories = [0 if v is None else v.fine_prompt.shape[1] for v in voices]
    contexts = [keys for plan in plans for keys in plan.contexts]
    return Load(
        audio_s=sum(frames) * config.codec.hop_length / config.sample_rate_hz,
        semantic=[u.n_tokens - 1 for u in utterances],
        coarse=[len(plan.contexts) for plan in plans],
        prompt_tokens=sum(sum(plan.prompts) for plan in plans),
        keys=round(sum(contexts) / max(1, len(contexts))),
        windows=sum(
            len(plan_windows(f, h, config)) for f, h in zip(frames, histories, strict=True)
        ),
        codec_flops=sum(
            costs.codec(config.codec, frames=f, codebooks=config.fine_rules.n_fine_codebooks).flops
            for f in frames
        ),
    )


@dataclass
class LoadModel:
    """Predicts the time of loads of one model size.

    Attributes:
        change: applied to what was recorded, to try an alternative.
        graphs: as `GRAPHS`.
    """

    model: TimeModel
    size: str
    change: Change = lambda operations: operations
    graphs: dict[str, bool] = field(default_factory=lambda: dict(GRAPHS))

    def step_us(self, stage: str, rows: int, *, keys: int) -> float:
        """Return the microseconds of a decode step."""
        return self._us("decode", recording.decode_step(self.size, stage, rows, keys=keys))

    def prefill_us(self, stage: str, prompts: int, *, tokens: int) -> float:
        """Return the microseconds of a batch of prompts."""
        return self._us("prefill", recording.prefill(self.size, stage, prompts, tokens=tokens))

    def fine_us(self, windows: int) -> float:
        """Return the microseconds of a fine pass."""
        return self._us("fine", recording.fine_pass(self.size, windows))

    def _us(self, phase: str, operations: Sequence[Operation]) -> float:
        changed = self.change(operations)
        in_graph = self.graphs[phase]
        return self.model.total_us(changed) if in_graph else self.model.launched_us(changed)

    def stage_s(self, load: Load) -> dict[str, float]:
        """Return the seconds of each stage."""
        config = config_of(self.size)
        prompt = config.semantic_rules.max_input_semantic_length + 1
        n, each = len(load.semantic), max(1, MAX_PREFILL_TOKENS // prompt)
        prompts_us = self._batches(n, each, lambda k: self.prefill_us("semantic", k, tokens=prompt))
        longest = prompt + max(load.semantic)
        semantic = prompts_us + self._steps_us(
            "semantic", load.semantic, keys=(prompt + longest) // 2
        )
        coarse_prompts, each = -(-load.prompt_tokens // _COARSE_PROMPT), MAX_PREFILL_TOKENS
        coarse = self._batches(
            coarse_prompts,
            each // _COARSE_PROMPT,
            lambda k: self.prefill_us("coarse", k, tokens=_COARSE_PROMPT),
        ) + self._steps_us("coarse", load.coarse, keys=load.keys)
        passes = config.fine_rules.n_fine_codebooks - config.coarse_rules.n_coarse_codebooks
        fine = passes * self._batches(load.windows, MAX_WINDOWS, self.fine_us)
        gpu, assumed = self.model.gpu, self.model.assumed
        codec = 1e6 * load.codec_flops / (gpu.flops_per_s * assumed.codec_share)
        each_us = {"semantic": semantic, "coarse": coarse, "fine": fine, "codec": codec}
        return {stage: us * 1e-6 for stage, us in each_us.items()}

    def audio_s_per_s(self, load: Load) -> float:
        """Return the seconds of audio a second, the stages one after another."""
        return load.audio_s / sum(self.stage_s(load).values())

    def _steps_us(self, stage: str, steps: Sequence[int], *, keys: int) -> float:
        """Return the time of the steps of requests that begin together; shorter ones leave."""
        sizes = capture_sizes(MAX_BATCH)
        step_us = cache(lambda size: self.step_us(stage, size, keys=keys))
        total = 0.0
        for i in range(max(steps, default=0)):
            running = sum(n > i for n in steps)
            total += step_us(padded_size(sizes, min(running, MAX_BATCH)))
        looks = max(steps, default=0) / STEPS_PER_LOOK[stage]
        return total + looks * self.model.assumed.look_us

    @staticmethod
    def _batches(n: int, most: int, us: Callable[[int], float]) -> float:
        """Return the time of n pieces of work in batches of `most`, and one of the rest."""
        whole, rest = divmod(n, most)
        return (whole * us(most) if whole else 0.0) + (us(rest) if rest else 0.0)
