"""Count the least cost of whole requests: the stages' windows, by the formulas of `costs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bark_fast.checkpoint.config import Config
from bark_fast.stages.coarse import CoarseTask, count_frames
from bark_fast.stages.fine import plan_windows
from bark_fast.stages.sampling import SamplingParams
from bark_fast.types import STAGES, Voice
from bench.cases import costs
from bench.cases.costs import Cost
from bench.harness.machine import Limits


@dataclass(frozen=True)
class CoarsePlan:
    """The coarse windows of one request.

    Attributes:
        prompts: lengths of the prompts that have to be run, without those that the cache already
            holds.
        contexts: the number of keys that each decode step sees.
    """

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]


def plan_coarse(n_semantic: int, voice: Voice | None, config: Config) -> CoarsePlan:
    """Plan the windows by the rules of the coarse stage.

    The tokens are all different, so that no two prompts are alike by chance.
    """
    task = CoarseTask.start(voice, SamplingParams(0.0, seed=0), config)
    task.extend(range(n_semantic), complete=True)
    prompts, contexts = [], []
    while task.open:
        if task.prefilled:
            contexts.append(task.cached + 1)
        else:
            prompts.append(task.length)
        task.accept([-1 - len(task.tokens)], ended=False)
    return CoarsePlan(tuple(prompts), tuple(contexts))


def request_costs(
    n_semantic: int, voice: Voice | None, config: Config, *, size: int
) -> dict[str, Cost]:
    """Return the cost of each stage for a single request.

    Args:
        n_semantic: semantic tokens that the request makes.
        size: bytes of a number.
    """
    return {
        "semantic": _semantic(n_semantic, config, size),
        "coarse": _coarse(n_semantic, voice, config, size),
        "fine": _fine(count_frames(n_semantic, config), voice, config, size),
        "codec": costs.codec(
            config.codec,
            frames=count_frames(n_semantic, config),
            codebooks=config.fine_rules.n_fine_codebooks,
        ),
    }


def floor_s(
    requests: Sequence[tuple[int, Voice | None]], config: Config, limits: Limits, *, size: int
) -> float:
    """Return the least time for requests that are made together.

    Weights are counted as if every step ran all requests at once, so only the longest request's
    steps read them; operations and state are counted for every request. Stages come one after
    another.

    Args:
        requests: (semantic tokens, voice) of each.
    """
    each = [request_costs(n, voice, config, size=size) for n, voice in requests]
    total = 0.0
    for stage in STAGES:
        stage_costs = [cost[stage] for cost in each]
        n_bytes = max(c.weight_bytes for c in stage_costs)
        n_bytes += sum(c.state_bytes for c in stage_costs)
        flops = sum(c.flops for c in stage_costs)
        total += limits.floor_s(n_bytes, flops, float32=stage == "codec")
    return total


def _semantic(n_tokens: int, config: Config, size: int) -> Cost:
    columns = costs.head_columns(config, "semantic")
    prompt = config.semantic_rules.max_input_semantic_length + 1
    total = costs.prefill(config.semantic, tokens=prompt, columns=columns, size=size, streams=2)
    steps = n_tokens - 1  # the prompt draws the first; the last is never run
    mean = prompt + (steps + 1) / 2
    step = costs.decode_step(config.semantic, batch=1, context=mean, columns=columns, size=size)
    return total + step * steps


def _coarse(n_semantic: int, voice: Voice | None, config: Config, size: int) -> Cost:
    columns = costs.head_columns(config, "coarse")
    plan = plan_coarse(n_semantic, voice, config)
    total = Cost()
    for tokens in plan.prompts:
        total += costs.prefill(config.coarse, tokens=tokens, columns=columns, size=size)
    if plan.contexts:
        mean = sum(plan.contexts) / len(plan.contexts)
        step = costs.decode_step(config.coarse, batch=1, context=mean, columns=columns, size=size)
        total += step * len(plan.contexts)
    return total


def _fine(n_frames: int, voice: Voice | None, config: Config, size: int) -> Cost:
    rules = config.fine_rules
    n_history = 0
    if voice is not None:
        n_history = min(voice.fine_prompt.shape[1], rules.max_fine_history_length)
    total = Cost()
    if not n_frames:
        return total
    end = n_history + n_frames
    for window in plan_windows(n_frames, n_history, config):
        for codebook in range(config.coarse_rules.n_coarse_codebooks, rules.n_fine_codebooks):
            # The codes of the padding behind the last frame are seen by the passes that follow.
            stop = rules.max_fine_input_length
            if codebook == rules.n_fine_codebooks - 1:
                stop = min(stop, end - window.start)
            total += costs.fine_pass(
                config.fine,
                batch=1,
                codebook=codebook,
                columns=config.codebook_size,
                size=size,
                frames=rules.max_fine_input_length,
                filled=stop - window.first_frame,
            )
    return total
