"""Engines on small checkpoints, random requests, and ways of running them."""

from __future__ import annotations

import random
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from bark_fast import EngineOptions, GenerationParams, Speech
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.engine.build import load_engine
from bark_fast.engine.engine import Engine
from bark_fast.kernels import Impl, choose_impl
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint

CPU = torch.device("cpu")


def make_engine(
    checkpoint: Checkpoint,
    *,
    impl: Impl | None = None,
    graphs: Any = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    **options: Any,
) -> Engine:
    source = Source.open(checkpoint.folder, revision=None, local_files_only=True)
    return load_engine(
        TensorsInFiles(source),
        checkpoint.config,
        dtype=dtype,
        device=device,
        impl=impl or choose_impl(device, dtype),
        options=EngineOptions(**options),
        graphs=graphs,
    )


def gib_for(checkpoint: Checkpoint, utterances: float, page_size: int) -> float:
    """Memory for the keys and values of so many utterances."""
    total = 0
    rules = checkpoint.config.semantic_rules
    window = checkpoint.config.coarse_rules
    for gpt, longest in (
        (checkpoint.config.semantic, rules.max_input_semantic_length + rules.max_new_tokens),
        (
            checkpoint.config.coarse,
            window.max_coarse_input_length + window.max_coarse_history + window.sliding_window_len,
        ),
    ):
        total += -(-longest // page_size) * page_size * gpt.hidden_size * gpt.num_layers * 8
    return utterances * total / 2**30


def random_requests(checkpoint: Checkpoint, n: int, *, longest: int, seed: int) -> list[Request]:
    """Random texts, voices, seeds, lengths and ways of drawing; some alike on purpose."""
    rng = random.Random(seed)
    voices = [None, checkpoint.voice(3), checkpoint.voice(17, seed=1), checkpoint.voice(40, seed=2)]
    requests = []
    for i in range(n):
        params = GenerationParams(
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([None, 0, 5, 20]),
            top_p=rng.choice([None, 0.6, 1.0]),
            min_eos_p=rng.choice([None, 0.0, 0.02]),
            max_semantic_tokens=rng.randint(1, longest),
            seed=rng.randrange(2**64),
        )
        text = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, 12))) + "x"
        if i % 5 == 4:
            text = requests[-1].text  # the same prompt, drawn otherwise
            voice = requests[-1].voice
        else:
            voice = rng.choice(voices)
        requests.append(checkpoint.bark.request(text, voice, params))
    return requests


def same(a: Speech, b: Speech) -> bool:
    return a.finish_reason == b.finish_reason and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("semantic_tokens", "coarse_tokens", "fine_tokens")
    )


def run_all(engine: Engine, requests: list[Request], *, seed: int = 0) -> list[Speech]:
    """Submit the requests between steps, at random moments."""
    rng = random.Random(seed)
    futures: list[Future[Speech]] = []
    while len(futures) < len(requests) or engine.has_work:
        while len(futures) < len(requests) and rng.random() < 0.4:
            futures.append(engine.submit(requests[len(futures)], urgent=rng.random() < 0.5))
        engine.step()
    assert engine.used_pages == 0
    return [future.result(timeout=0) for future in futures]


def one_by_one(engine: Engine, requests: list[Request]) -> list[Speech]:
    speeches = []
    for request in requests:
        future = engine.submit(request)
        while engine.step():
            pass
        speeches.append(future.result(timeout=0))
    return speeches
