"""One utterance: what was asked, with every default filled in from the checkpoint."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.config import SamplingDefaults as Sampling
from bark_fast.errors import InputError
from bark_fast.stages.coarse import count_frames
from bark_fast.types import GenerationParams, Voice

_LEAST_TEMPERATURE = 1e-5

Stage = Literal["semantic", "coarse", "fine", "codec"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Request:
    """An utterance ready to be generated, from its text or from semantic tokens, up to a stage.

    Attributes:
        text: normalised; `text_ids`: its tokens, -1 for a pad.
        min_semantic_tokens: the end token cannot be drawn before so many.
        seed: never None; drawn here if none was asked for.
        given: semantic tokens to speak; the semantic stage is over then before it begins, and the
            text is not looked at.
        last_stage: what the stages after it would make is left empty in the Speech.
    """

    text: str
    text_ids: list[int]
    voice: Voice | None
    semantic: Sampling
    coarse: Sampling
    fine: Sampling
    min_eos_p: float
    max_semantic_tokens: int
    seed: int
    min_semantic_tokens: int = 0
    given: tuple[int, ...] | None = None
    last_stage: Stage = "codec"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that it passes through."""
        first = 0 if self.given is None else 1
        return STAGES[first : STAGES.index(self.last_stage) + 1]

    @classmethod
    def resolve(
        cls,
        text: str,
        text_ids: list[int],
        voice: Voice | None,
        params: GenerationParams,
        config: Config,
        *,
        given: Sequence[int] | None = None,
        given_name: str = "semantic_tokens",
        last_stage: Stage = "codec",
    ) -> Request:
        """Fill in what `params` leave open.

        Args:
            given_name: what errors call the `given` tokens.

        Raises:
            InputError: max_duration_s is shorter than one frame, there are more `given` tokens than
                `params` allow, or `last_stage` is none that it passes through.
        """
        rules = config.semantic_rules
        stages = STAGES if given is None else STAGES[1:]
        if last_stage not in stages:
            raise InputError(f"last_stage must be one of {', '.join(stages)}, got {last_stage!r}")
        if given is not None:
            _check_length(given_name, len(given), params, config)
        return cls(
            text=text,
            text_ids=text_ids,
            voice=voice,
            semantic=_sampling("semantic", params, rules.sampling),
            coarse=_sampling("coarse", params, config.coarse_rules.sampling),
            fine=_sampling("fine", params, config.fine_rules.sampling),
            min_eos_p=rules.min_eos_p if params.min_eos_p is None else float(params.min_eos_p),
            max_semantic_tokens=_max_semantic_tokens(params, config),
            seed=secrets.randbits(64) if params.seed is None else int(params.seed),
            # No sequence has more positions; an int64 holds this.
            min_semantic_tokens=min(params.min_semantic_tokens or 0, rules.max_new_tokens),
            given=None if given is None else tuple(given),
            last_stage=last_stage,
        )


def _sampling(stage: str, params: GenerationParams, default: Sampling) -> Sampling:
    def pick(name: str, otherwise: float) -> float:
        asked = params.for_stage(stage, name)
        return otherwise if asked is None else asked

    temperature = float(pick("temperature", default.temperature))
    return Sampling(
        # The limit of ever lower temperatures is greedy; long before, logits overflow.
        temperature=temperature if temperature >= _LEAST_TEMPERATURE else 0.0,
        top_k=int(pick("top_k", default.top_k)),
        top_p=float(pick("top_p", default.top_p)),
    )


def _max_semantic_tokens(params: GenerationParams, config: Config) -> int:
    limit = config.semantic_rules.max_new_tokens
    if params.max_semantic_tokens is not None:
        limit = min(limit, int(params.max_semantic_tokens))
    if params.max_duration_s is not None:
        frame_s = config.codec.hop_length / config.sample_rate_hz
        longest = min(params.max_duration_s, count_frames(limit, config) * frame_s)
        max_frames = math.floor(longest / frame_s + 1e-9)
        while limit > 0 and count_frames(limit, config) > max_frames:
            limit -= 1
        if limit == 0:
            raise InputError(
                f"max_duration_s must allow at least one frame ({frame_s:.4g} s), "
                f"got {params.max_duration_s!r}"
            )
    return limit


def _check_length(name: str, n_given: int, params: GenerationParams, config: Config) -> None:
    """Given tokens may be more than the model would write; not more than was asked for."""
    if params.max_semantic_tokens is not None and n_given > params.max_semantic_tokens:
        raise InputError(
            f"{name} must be at most max_semantic_tokens ({params.max_semantic_tokens}), "
            f"got {n_given}"
        )
    duration_s = count_frames(n_given, config) * config.codec.hop_length / config.sample_rate_hz
    if params.max_duration_s is not None and duration_s > params.max_duration_s + 1e-9:
        raise InputError(
            f"{name} must last at most max_duration_s ({params.max_duration_s:g}), "
            f"got {n_given} tokens, which last {duration_s:g} s"
        )
