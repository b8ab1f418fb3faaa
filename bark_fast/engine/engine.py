"""The step loop: takes requests through the four stages, one after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.weights import load_weights
from bark_fast.engine.kv_cache import KVCache
from bark_fast.engine.request import Request
from bark_fast.kernels import Impl
from bark_fast.models.encodec import CodecDecoder
from bark_fast.models.fine_gpt import FineGPT
from bark_fast.models.gpt import GPT
from bark_fast.stages import coarse, semantic
from bark_fast.stages.coarse import CoarseStage, CoarseTask, ids_to_codes
from bark_fast.stages.codec import CodecStage
from bark_fast.stages.draws import Draw
from bark_fast.stages.fine import FineStage, FineTask
from bark_fast.stages.semantic import SemanticStage, SemanticTask, build_prompt
from bark_fast.types import Speech

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps at most) while an utterance is made."""


@dataclass(frozen=True)
class Stages:
    """The four stages over one set of weights."""

    semantic: SemanticStage
    coarse: CoarseStage
    fine: FineStage
    codec: CodecStage

    @classmethod
    def load(
        cls,
        source: Source,
        config: Config,
        *,
        dtype: torch.dtype,
        device: torch.device,
        impl: Impl,
    ) -> Stages:
        """Read the checkpoint's weights and build the networks on them, with kernels by `impl`."""
        tensors = load_weights(source, config, dtype=dtype, device=device)
        semantic_ids = semantic.sampled_ids(config.semantic_rules)
        coarse_ids = coarse.sampled_ids(config)
        n_fine = config.fine_rules.n_fine_codebooks
        return cls(
            SemanticStage(
                GPT(config.semantic, tensors, "semantic", head_ids=semantic_ids, impl=impl),
                config.semantic_rules,
            ),
            CoarseStage(
                GPT(config.coarse, tensors, "coarse_acoustics", head_ids=coarse_ids, impl=impl),
                config,
            ),
            FineStage(FineGPT(config.fine, tensors, "fine_acoustics", impl=impl), config),
            CodecStage(
                CodecDecoder(config.codec, tensors, "codec_model", n_codebooks=n_fine, impl=impl)
            ),
        )


class Engine:
    """Generates requests one at a time."""

    def __init__(
        self, stages: Stages, config: Config, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config = config
        self._stages = stages
        self._device = device
        self._one_at_a_time = threading.Lock()  # threads that share a Bark take turns
        # With a page as long as the model's positions a sequence has one page, which the plain
        # attention reads without gathering.
        self._semantic_cache, self._coarse_cache = (
            KVCache(gpt, n_pages=1, page_size=gpt.block_size, dtype=dtype, device=device)
            for gpt in (config.semantic, config.coarse)
        )

    @property
    def used_pages(self) -> int:
        """Pages of keys and values in use; none between requests."""
        return self._semantic_cache.used_pages + self._coarse_cache.used_pages

    @torch.inference_mode()
    def generate(self, request: Request, progress: Progress | None = None) -> Speech:
        """Turn one request into speech."""
        # Triton launches on the current device, whatever device its tensors are on.
        device = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        with self._one_at_a_time, device:
            return self._generate(request, progress)

    def _generate(self, request: Request, progress: Progress | None) -> Speech:
        report = progress or (lambda stage, done, total: None)
        timings: dict[str, float] = {}

        with _timed(timings, "semantic"):
            semantic = self._run_semantic(request, report)
        with _timed(timings, "coarse"):
            coarse = self._run_coarse(request, semantic.tokens, report)
        codes = ids_to_codes(coarse.tokens, self.config)
        with _timed(timings, "fine"):
            fine = FineTask(codes, request.voice, Draw(request.fine, request.seed), self.config)
            while not fine.finished and fine.n_frames:
                self._stages.fine.run([fine])
                report("fine", fine.passes_done, fine.passes)
        with _timed(timings, "codec"):
            samples = self._stages.codec.run([fine.result()])[0]
            report("codec", 1, 1)
        assert semantic.finish_reason is not None
        return Speech(
            samples=samples,
            sample_rate_hz=self.config.sample_rate_hz,
            text=request.text,
            semantic_tokens=np.array(semantic.tokens, dtype=np.int64),
            coarse_tokens=codes,
            fine_tokens=fine.result(),
            timings=timings,
            finish_reason=semantic.finish_reason,
            seed=request.seed,
        )

    def _run_semantic(self, request: Request, report: Progress) -> SemanticTask:
        history = [] if request.voice is None else request.voice.semantic_prompt.tolist()
        task = SemanticTask(
            prompt=build_prompt(request.text_ids, history, self.config.semantic_rules),
            max_tokens=request.max_semantic_tokens,
            min_eos_p=request.min_eos_p,
            draw=Draw(request.semantic, request.seed),
        )
        with self._semantic_cache.reserve(task.max_length) as pages:
            while task.finish_reason is None:
                self._stages.semantic.run([task], [pages], self._semantic_cache.pages)
                report("semantic", len(task.tokens), task.max_tokens)
        return task

    def _run_coarse(
        self, request: Request, semantic_tokens: list[int], report: Progress
    ) -> CoarseTask:
        task = CoarseTask.start(
            semantic_tokens, request.voice, Draw(request.coarse, request.seed), self.config
        )
        with self._coarse_cache.reserve(task.max_length) as pages:
            while not task.finished:
                self._stages.coarse.run([task], [pages], self._coarse_cache.pages)
                report("coarse", len(task.tokens), task.n_tokens)
        return task


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
