"""Measure what lower precision changes and saves: agreement with float32, and time.

    python -m bench precision --size small
    python -m bench precision --size demo

It is teacher-forced: every network is given what float32 generated (greedy), and at each position
its most likely token is compared with float32's, so one difference does not cause the next. The
error of the logits is the root mean square of their difference over that of float32's logits about
their mean. Random weights have logits much closer together than a trained model's: their shares are
for comparing precisions, not for predicting what is heard. The demo voice is trained.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bark_fast import Bark, GenerationParams, InputError, Speech, kernels
from bark_fast.checkpoint.random import SIZES
from bark_fast.kernels import TokenSpace
from bark_fast.models.gpt import Chunk, KVPages
from bark_fast.stages.causal import CausalStage
from bark_fast.stages.coarse import CoarseTask
from bark_fast.stages.fine import build_codes
from bark_fast.stages.sampling import SamplingParams, batch_sampling
from bark_fast.stages.semantic import SILENT, build_prompt
from bench.harness.arguments import add_checkpoint, add_common, begin
from bench.harness.checkpoint import DEMO, checkpoint_for
from bench.harness.results import Case, Spread
from bench.harness.workload import SENTENCE

_PRECISIONS = ("float32", "bfloat16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, sizes=(*SIZES, DEMO))
    add_checkpoint(parser)
    parser.add_argument("--semantic-tokens", type=int, default=100)
    parser.add_argument("--precisions", nargs="+", default=list(_PRECISIONS), choices=_PRECISIONS)


def run(arguments: argparse.Namespace) -> int:
    results, _ = begin("precision", arguments)
    with checkpoint_for(
        arguments.checkpoint, size=arguments.size, seed=arguments.seed, dtype="float32"
    ) as checkpoint:
        exact = open_bark(checkpoint, "float32", arguments)
        params = GenerationParams(
            temperature=0, min_eos_p=0, max_semantic_tokens=arguments.semantic_tokens
        )
        speech = exact.generate(SENTENCE, params=params)
        reference = dict(teacher_forced(exact, speech))
        print(
            f"{'':<12}{'stage':<10}{'same token':>12}{'logit error':>13}{'stage s':>10}"
            f"{'request s':>12}"
        )
        for precision in arguments.precisions:
            try:
                bark = open_bark(checkpoint, precision, arguments)
            except InputError as error:
                print(f"{precision}: {error}")
                continue
            agreement = compare(reference, dict(teacher_forced(bark, speech)))
            seconds, of_stages = time_request(bark, params, arguments.runs)
            for stage, values in agreement.items():
                values["seconds"] = of_stages[stage].as_dict()
            case = Case(precision, seconds, agreement)
            results.cases.append(case)
            print_case(case)
            results.write(arguments.json)
    return 0


def open_bark(checkpoint: Path, precision: str, arguments: argparse.Namespace) -> Bark:
    return Bark.from_pretrained(
        checkpoint, device=arguments.device, dtype=precision, local_files_only=True
    )


def time_request(
    bark: Bark, params: GenerationParams, runs: int
) -> tuple[Spread, dict[str, Spread]]:
    """Measure the time of one request and of its stages, after one that does not count."""
    times, of_stages = [], []
    for _ in range(runs + 1):
        before, start = bark.engine.stats().stages, time.perf_counter()
        bark.generate(SENTENCE, params=params)
        times.append(time.perf_counter() - start)
        after = bark.engine.stats().stages
        of_stages.append({name: after[name].busy_s - before[name].busy_s for name in after})
    spreads = {name: Spread.of([run[name] for run in of_stages[1:]]) for name in of_stages[0]}
    return Spread.of(times[1:]), spreads


def teacher_forced(bark: Bark, speech: Speech) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield each stage with its logits [T, V], float32 on the host, and most likely columns [T]."""
    config, engine = bark.config, bark.engine
    semantic, coarse = engine.runner.semantic.stage, engine.runner.coarse.stage
    request = bark.request(SENTENCE)
    text, history = build_prompt(request.text_ids, [], config.semantic_rules)
    tokens = speech.semantic_tokens.tolist()
    streams = [[*text, *tokens], [*history, *[SILENT] * len(tokens)]]
    yield "semantic", score(semantic, streams, len(tokens))

    task = CoarseTask.start(None, request.coarse, config)
    task.extend(tokens, complete=True)
    prompt = list(task.prompt[0])
    # The first windows share one prompt until the history is trimmed.
    room = semantic.model.config.block_size - len(prompt)
    codes = speech.coarse_tokens.T.reshape(-1).tolist()
    n_books, size = config.coarse_rules.n_coarse_codebooks, config.codebook_size
    first = config.semantic_rules.semantic_vocab_size
    ids = [first + i % n_books * size + code for i, code in enumerate(codes)][:room]
    yield "coarse", score(coarse, [[*prompt, *ids]], len(ids))

    yield "fine", score_fine(bark, speech)


def score(stage: CausalStage, streams: list[list[int]], count: int) -> tuple[Tensor, Tensor]:
    """Return the logits that the last `count` tokens of a sequence were drawn from, and the most
    likely column of each."""
    model = stage.model
    length = len(streams[0])
    dtype = model.ops.kv_dtype(model.embedding.dtype)
    cache = KVPages.allocate(model.config, 1, length, dtype=dtype, device=model.device)
    logits = model.score(Chunk(streams, 0, [0]), cache)[length - count - 1 : length - 1]
    return logits.float().cpu(), _greedy(logits, stage.space)


def score_fine(bark: Bark, speech: Speech) -> tuple[Tensor, Tensor]:
    """Return the same of all passes over the first window, each given the codes before it."""
    config, model = bark.config, bark.engine.runner.fine.model
    codes, _ = build_codes(speech.coarse_tokens, None, config)
    codes = codes[: config.fine_rules.max_fine_input_length]
    frames = min(len(codes), speech.fine_tokens.shape[1])
    logits, chosen = [], []
    for book in range(config.coarse_rules.n_coarse_codebooks, speech.fine_tokens.shape[0]):
        states = model.forward(codes[None].to(bark.device), book)[:frames]
        logits.append(model.logits(states, book))
        chosen.append(_greedy(logits[-1], TokenSpace(stage=0)))
        codes[:frames, book] = torch.from_numpy(speech.fine_tokens[book, :frames])
    return torch.cat(logits).float().cpu(), torch.cat(chosen)


def _greedy(logits: Tensor, space: TokenSpace) -> Tensor:
    greedy = batch_sampling([SamplingParams(0.0, seed=0)] * len(logits), logits.device)
    positions = torch.arange(len(logits), device=logits.device)
    chosen = kernels.sample(logits, greedy, space, positions=positions)
    return chosen.cpu()


def compare(
    reference: dict[str, tuple[Tensor, Tensor]], other: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Return, by stage, the share of equal columns and the error of the logits."""
    found: dict[str, Any] = {}
    for stage, (logits, columns) in reference.items():
        other_logits, other_columns = other[stage]
        spread = (logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()
        error = (other_logits - logits).square().mean().sqrt() / spread
        found[stage] = {
            "tokens": len(columns),
            "same_token": float(np.mean((columns == other_columns).numpy())),
            "logit_error": float(error),
        }
    return found


def print_case(case: Case) -> None:
    for i, (stage, values) in enumerate(case.values.items()):
        seconds = f"{values['seconds']['median']:10.2f}"
        seconds += f"{case.seconds.median:12.2f}" if i == 0 else ""
        print(
            f"{case.name if i == 0 else '':<12}{stage:<10}{values['same_token']:12.1%}"
            f"{values['logit_error']:13.4f}{seconds}",
            flush=True,
        )
