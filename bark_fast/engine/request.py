"""One utterance: what was asked, with every default filled in from the checkpoint."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from bark_fast.checkpoint.config import Config, Sampling
from bark_fast.stages.coarse import count_frames
from bark_fast.types import GenerationParams, InputError, Voice

_LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Request:
    """An utterance ready to be generated.

    Attributes:
        text: normalised; `text_ids`: its tokens, -1 for a pad.
        min_semantic_tokens: the end token cannot be drawn before so many.
        seed: never None; drawn here if none was asked for.
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

    @classmethod
    def resolve(
        cls,
        text: str,
        text_ids: list[int],
        voice: Voice | None,
        params: GenerationParams,
        config: Config,
    ) -> Request:
        """Fill in what `params` leave open.

        Raises:
            InputError: max_duration_s is shorter than one frame.
        """
        rules = config.semantic_rules
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
