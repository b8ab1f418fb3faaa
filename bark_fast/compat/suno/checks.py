"""Checks of what suno's functions are asked for, in the engine's terms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from bark_fast.checkpoint.config import CoarseRules, Config
from bark_fast.errors import InputError
from bark_fast.stages.sampling import LEAST_TEMPERATURE, NEVER_AT_ONCE, SamplingParams
from bark_fast.types import IntArray
from bark_fast.validation import check_integer, check_number, check_temperature, check_tokens

_LEAST_COARSE_HISTORY = 60  # suno's limit; the most is the checkpoint's own


def check_flags(**flags: Any) -> None:
    """Check that these arguments are True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be True or False, got {value!r}")


def sampling(
    seed: int, temp: float, top_k: int | None = None, top_p: float | None = None
) -> SamplingParams:
    """Return parameters by suno's rules; `top_k` and `top_p` None keep all."""
    check_temperature("temp", temp)
    if top_k is not None:
        check_integer("top_k", top_k, "an integer >= 1, or None", 1, math.inf)
    if top_p is not None:
        check_number("top_p", top_p, "a number from 0 to 1, or None", 0, 1)
    return SamplingParams(
        temperature=float(temp) if temp >= LEAST_TEMPERATURE else 0.0,
        seed=seed,
        top_k=0 if top_k is None else int(top_k),
        top_p=1.0 if top_p is None else float(top_p),
        min_eos_p=NEVER_AT_ONCE,
        suno_rules=True,
    )


def least_end_probability(min_eos_p: float | None) -> float:
    """Return the end token's probability from which on a text ends at once; for None, none."""
    if min_eos_p is None:
        return NEVER_AT_ONCE
    check_number("min_eos_p", min_eos_p, "a finite number, or None", -math.inf, math.inf)
    return float(min_eos_p)


def most_semantic_tokens(max_gen_duration_s: float | None, config: Config) -> int:
    """Return the semantic tokens after which suno's loop ends: the first that exceed the time."""
    rules = config.semantic_rules
    if max_gen_duration_s is None:
        return rules.max_new_tokens
    check_number("max_gen_duration_s", max_gen_duration_s, "a number >= 0, or None", 0, math.inf)
    duration_s, n = 0.0, 0
    while n < rules.max_new_tokens and duration_s <= max_gen_duration_s:
        duration_s += 1 / rules.semantic_rate_hz  # summed, because its rounding decides
        n += 1
    return n


def coarse_windows(max_coarse_history: int, sliding_window_len: int, config: Config) -> CoarseRules:
    """Return the rules of the coarse stage with these windows."""
    rules, block = config.coarse_rules, config.coarse.block_size
    low, high = min(_LEAST_COARSE_HISTORY, rules.max_coarse_history), rules.max_coarse_history
    requirement = f"an integer from {low} to {high}"
    check_integer("max_coarse_history", max_coarse_history, requirement, low, high)
    most = block - rules.max_coarse_input_length - max_coarse_history
    requirement = f"an integer from 1 to {most} with max_coarse_history={max_coarse_history}"
    check_integer("sliding_window_len", sliding_window_len, requirement, 1, most)
    return replace(
        rules,
        max_coarse_history=int(max_coarse_history),
        sliding_window_len=int(sliding_window_len),
    )


def check_codes(name: str, value: Any, most: int, config: Config) -> IntArray:
    """Return codes int64 [1 to `most`, F]."""
    codes = check_tokens(name, value, (None, None), config.codebook_size, may_be_empty=True)
    check_integer(f"the codebooks of {name}", len(codes), f"an integer from 1 to {most}", 1, most)
    return codes
