"""Make cases of each stage at a batch size, as the engine runs it, with the least cost of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bark_fast import Bark
from bark_fast.engine.scheduler import Phase
from bark_fast.stages.causal import CausalTask
from bark_fast.stages.coarse import count_frames
from bark_fast.stages.fine import FineTask
from bark_fast.stages.sampling import SamplingParams
from bench.cases import costs
from bench.cases.costs import Cost

KINDS = ("decode", "prefill", "fine", "codec")
_GREEDY = SamplingParams(0.0, seed=0)


@dataclass(frozen=True)
class StageCase:
    """One stage at one batch size.

    Attributes:
        run: takes the result of `prepare`, and waits for the end only as far as the engine does.
        steps: number of steps that one run makes; the time of a case is that of one step.
        half: makes half as many steps, which tells what a step takes without its share of handing
            tokens to the host.
        units: how many of `unit` a step makes.
    """

    name: str
    stage: str
    batch: int
    run: Callable[[Any], object]
    prepare: Callable[[], Any]
    cost: Cost
    units: float
    unit: str
    steps: int = 1
    half: Callable[[Any], object] | None = None


def stage_cases(
    bark: Bark,
    batches: Sequence[int],
    *,
    kinds: Sequence[str],
    contexts: Sequence[int],
    semantic_tokens: int,
    size: int,
) -> Iterator[StageCase]:
    """Yield the cases of `kinds`, the cheap ones first.

    Args:
        contexts: positions before a decode step.
        semantic_tokens: length of the speech that the codec decodes.
        size: bytes of a number.
    """
    parts = Parts(bark, size)
    for stage in ("semantic", "coarse"):
        if "decode" in kinds:
            yield from parts.decode(stage, batches, contexts)
    if "codec" in kinds:
        frames = count_frames(semantic_tokens, bark.config)
        for batch in parts.allowed(batches, Phase.CODEC, each=frames):
            yield parts.codec(batch, frames)
    if "prefill" in kinds:
        for batch in parts.allowed(batches, Phase.SEMANTIC_PREFILL, each=parts.semantic_prompt):
            yield parts.prefill("semantic", batch, parts.semantic_prompt)
        for tokens in (parts.coarse_prompt(0.0), parts.coarse_prompt(1.0)):
            for batch in parts.allowed(batches, Phase.COARSE_PREFILL, each=tokens):
                yield parts.prefill("coarse", batch, tokens)
    if "fine" in kinds:
        for batch in parts.allowed(batches, Phase.FINE):
            yield parts.fine(batch)


class Parts:
    """Makes cases of the runners inside a Bark.

    They are taken from within the engine on purpose, with the batch limits, pages and graphs that
    it has set up for itself. The engine must have nothing else to do.
    """

    def __init__(self, bark: Bark, size: int) -> None:
        engine = bark.engine
        self._config = bark.config
        self._device = bark.device
        self._size = size
        self._causal: dict[str, Any] = {
            "semantic": engine.runner.semantic,
            "coarse": engine.runner.coarse,
        }
        self._fine: Any = engine.runner.fine
        self._codec: Any = engine.runner.codec
        self._limits = engine.runner.config.limits
        self._steps = engine.runner.config.steps
        self._networks = {"semantic": bark.config.semantic, "coarse": bark.config.coarse}

    @property
    def semantic_prompt(self) -> int:
        """Length of a semantic prompt."""
        return self._config.semantic_rules.max_input_semantic_length + 1

    def coarse_prompt(self, history: float) -> int:
        """Return the length of a coarse prompt with the share `history` of the longest history."""
        rules = self._config.coarse_rules
        return rules.max_coarse_input_length + 1 + int(history * rules.max_coarse_history)

    def allowed(self, batches: Sequence[int], phase: Phase, *, each: int = 1) -> list[int]:
        """Return `batches`, none larger than the engine would run at once."""
        most = max(1, self._limits[phase] // each)
        return sorted({min(batch, most) for batch in batches})

    def decode(
        self, stage: str, batches: Sequence[int], contexts: Sequence[int]
    ) -> Iterator[StageCase]:
        """Yield cases of decode after each number of positions in `contexts`.

        Each makes as many steps as the engine enqueues between two looks at the tokens.
        """
        decoder, steps = self._causal[stage], self._steps[stage]
        contexts = [c for c in contexts if c + steps <= self._networks[stage].block_size]
        if not contexts:
            return
        n_pages, page_size = decoder.cache.keys.shape[1], decoder.cache.page_size
        each = -(-(max(contexts) + steps) // page_size)
        fitting = [batch for batch in batches if batch * each <= n_pages]
        if fitting != list(batches):
            print(f"{stage} decode: no pages for batches of more than {n_pages // each}")
        if not fitting:
            return
        tasks = self._tasks(stage, max(fitting), max(contexts))
        pages = _pages(len(tasks), each)
        for task, task_pages in zip(tasks, pages, strict=True):
            # One by one: it is their keys and values that are wanted, not their time.
            decoder.prefill([task], [task_pages])()
        for context in contexts:
            for batch in fitting:
                yield self._decode(stage, tasks[:batch], pages[:batch], context)

    def _decode(
        self, stage: str, tasks: list[CausalTask], pages: list[list[int]], context: int
    ) -> StageCase:
        decoder, steps, batch = self._causal[stage], self._steps[stage], len(tasks)

        def prepare() -> None:
            for task in tasks:
                task.cached, task.prefilled, task.limit = context, True, steps + 1

        def run(n_steps: int) -> None:
            drawn = decoder.decode(tasks, pages, n_steps)()
            # A row that ended early would make the others look cheap.
            assert all(len(row.tokens) == n_steps for row in drawn), "a row ended too early"

        return StageCase(
            f"{stage} decode after {context}, B={batch}",
            stage,
            batch,
            run=lambda _: run(steps),
            half=lambda _: run(steps // 2),
            prepare=prepare,
            cost=costs.decode_step(
                self._networks[stage],
                batch=batch,
                context=context + (steps + 1) / 2,
                columns=costs.head_columns(self._config, stage),
                size=self._size,
            ),
            units=batch,
            unit="tokens",
            steps=steps,
        )

    def prefill(self, stage: str, batch: int, tokens: int) -> StageCase:
        """Return the case of `batch` prompts of so many tokens, run together."""
        decoder = self._causal[stage]
        tasks = self._tasks(stage, batch, tokens)
        pages = _pages(batch, -(-tokens // decoder.cache.page_size))
        return StageCase(
            f"{stage} prefill, {tokens} tokens, B={batch}",
            stage,
            batch,
            run=lambda _: decoder.prefill(tasks, pages)(),
            prepare=lambda: None,
            cost=costs.prefill(
                self._networks[stage],
                tokens=tokens,
                sequences=batch,
                streams=len(tasks[0].prompt),
                columns=costs.head_columns(self._config, stage),
                size=self._size,
            ),
            units=batch * tokens,
            unit="tokens",
        )

    def fine(self, batch: int) -> StageCase:
        """Return the case of one window of each utterance: a pass for each codebook to predict."""
        rules, first = self._config.fine_rules, self._config.coarse_rules.n_coarse_codebooks
        frames = rules.max_fine_input_length
        coarse = np.random.default_rng(0).integers(self._config.codebook_size, size=(first, frames))
        passes = range(first, rules.n_fine_codebooks)

        def prepare() -> list[FineTask]:
            return [
                FineTask(coarse, None, _GREEDY, self._config, self._device) for _ in range(batch)
            ]

        def run(tasks: list[FineTask]) -> None:
            for _ in passes:
                self._fine.run(tasks)

        total = Cost()
        for codebook in passes:
            total += costs.fine_pass(
                self._config.fine,
                batch=batch,
                codebook=codebook,
                columns=self._config.codebook_size,
                size=self._size,
                frames=frames,
            )
        return StageCase(
            f"fine window, {len(passes)} passes, B={batch}",
            "fine", batch, run, prepare, total, batch * frames, "frames",
        )  # fmt: skip

    def codec(self, batch: int, frames: int) -> StageCase:
        """Return the case of decoding codes to samples on the host."""
        n_codebooks = self._config.fine_rules.n_fine_codebooks
        shape = (batch, n_codebooks, frames)
        drawn = np.random.default_rng(0).integers(self._config.codebook_size, size=shape)
        codes = list(torch.from_numpy(drawn).to(self._device))
        return StageCase(
            f"codec, {frames} frames, B={batch}",
            "codec",
            batch,
            run=lambda _: [wave.cpu() for wave in self._codec.run(codes)],
            prepare=lambda: None,
            cost=costs.codec(self._config.codec, frames=frames, codebooks=n_codebooks, batch=batch),
            units=batch * frames * self._config.codec.hop_length / self._config.sample_rate_hz,
            unit="s of audio",
        )

    def _tasks(self, stage: str, batch: int, tokens: int) -> list[CausalTask]:
        """Return tasks with prompts of random ids that the stage could draw, all different."""
        rng = np.random.default_rng(0)
        first, high = 0, self._config.semantic_rules.semantic_vocab_size
        if stage == "coarse":
            first, high = high, high + self._config.codebook_size
        streams = 2 if stage == "semantic" else 1
        return [
            CausalTask(
                sampling=_GREEDY,
                prompt=tuple(rng.integers(first, high, size=(streams, tokens)).tolist()),
                limit=1,
            )
            for _ in range(batch)
        ]


def _pages(n_sequences: int, each: int) -> list[list[int]]:
    """Return pages for some sequences, none of them shared."""
    return [list(range(i * each, (i + 1) * each)) for i in range(n_sequences)]
