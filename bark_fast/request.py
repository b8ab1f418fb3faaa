"""Requests: one utterance's arguments, checked, with every default filled in.

`RequestBuilder` makes them out of what users pass; the engine takes them as they are.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from bark_fast.checkpoint.config import CoarseRules, Config, SamplingDefaults
from bark_fast.checkpoint.layout import Checkpoint
from bark_fast.errors import InputError
from bark_fast.spelling import Spelling
from bark_fast.stages.coarse import count_frames
from bark_fast.stages.sampling import LEAST_TEMPERATURE, SamplingParams
from bark_fast.text import Tokenizer, normalise, split_text
from bark_fast.types import STAGES, GenerationParams, IntArray, Stage, Voice
from bark_fast.validation import check_integer, check_tokens, is_finite, is_language
from bark_fast.voices import VoiceLibrary, VoiceLike

Tokens = npt.NDArray[np.integer[Any]] | Sequence[int]
"""Semantic tokens of one utterance, [S]."""

OneOrMoreVoices = VoiceLike | Sequence[VoiceLike | None]
OneOrMoreParams = GenerationParams | Sequence[GenerationParams | None]


@dataclass(frozen=True)
class Request:
    """An utterance ready to be generated, from its text or from semantic tokens, up to a stage.

    Attributes:
        text: normalised; `text_ids`: its tokens, -1 for a pad.
        semantic, coarse, fine: how each stage samples.
        max_semantic_tokens: the semantic stage ends after so many.
        seed: never None; drawn here if none was asked for.
        given: semantic tokens to speak; the semantic stage is over then before it begins, and the
            text is not looked at.
        given_codes: codes [n, F] for `last_stage` to work on alone: "fine" adds the codebooks that
            are missing, "codec" decodes those that there are.
        coarse_rules: other windows of the coarse stage than the checkpoint's.
        last_stage: later stages do not run, and the Speech is empty where they would fill it.
    """

    text: str
    text_ids: list[int]
    voice: Voice | None
    semantic: SamplingParams
    coarse: SamplingParams
    fine: SamplingParams
    max_semantic_tokens: int
    seed: int
    given: tuple[int, ...] | None = None
    given_codes: IntArray | None = field(default=None, compare=False)
    coarse_rules: CoarseRules | None = None
    last_stage: Stage = "codec"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that it passes through."""
        if self.given_codes is not None:
            return (self.last_stage,)
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
        seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        return cls(
            text=text,
            text_ids=text_ids,
            voice=voice,
            semantic=_sampling(
                "semantic",
                params,
                rules.sampling,
                seed,
                min_eos_p=rules.min_eos_p if params.min_eos_p is None else float(params.min_eos_p),
                # No sequence has more positions; an int64 holds this.
                min_new_tokens=min(params.min_semantic_tokens or 0, rules.max_new_tokens),
            ),
            coarse=_sampling("coarse", params, config.coarse_rules.sampling, seed),
            fine=_sampling("fine", params, config.fine_rules.sampling, seed),
            max_semantic_tokens=_max_semantic_tokens(params, config),
            seed=seed,
            given=None if given is None else tuple(given),
            last_stage=last_stage,
        )


def rehearsal() -> list[Request]:
    """Return short requests that between them pass through every stage, whatever the weights."""
    sampling = SamplingParams(temperature=0.0, seed=0)
    whole = Request(
        text="",
        text_ids=[0],
        voice=None,
        semantic=sampling,
        coarse=sampling,
        fine=sampling,
        max_semantic_tokens=2,
        seed=0,
        last_stage="semantic",
    )
    # The text may end at once, so what follows begins with tokens of its own.
    return [whole, replace(whole, given=(0,) * 8, last_stage="codec")]


class RequestBuilder:
    """Makes requests for one checkpoint out of what users pass, and checks it.

    Args:
        config, tokenizer, voices: the checkpoint's.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, voices: VoiceLibrary) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.voices = voices
        self._spelling = Spelling()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> RequestBuilder:
        """Read a checkpoint's tokenizer and voices.

        Raises:
            CheckpointError: they cannot be read.
        """
        config = checkpoint.config
        tokenizer = Tokenizer(
            checkpoint.tokenizer,
            limit=config.semantic.input_vocab_size - config.semantic_rules.text_encoding_offset,
            max_tokens=config.max_text_tokens,
        )
        return cls(config, tokenizer, VoiceLibrary(checkpoint.source, config))

    def from_text(
        self,
        text: str,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        *,
        last_stage: Stage = "codec",
    ) -> Request:
        """Return the request of saying a text.

        Raises:
            InputError: an argument is wrong.
        """
        checked = checked_params(params)
        clean = normalise(text)
        if (spell := self._spell(checked.normalize_text, "en")) is not None:
            clean = normalise(spell(clean))
        ids = self.tokenizer.encode(clean)
        loaded = self.voices.get(voice)
        return Request.resolve(clean, ids, loaded, checked, self.config, last_stage=last_stage)

    def from_tokens(
        self,
        semantic_tokens: Any,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        *,
        name: str = "semantic_tokens",
    ) -> Request:
        """Return the request of saying semantic tokens; `name` is what errors call them.

        Raises:
            InputError: an argument is wrong.
        """
        checked = checked_params(params)
        limit = self.config.semantic_rules.semantic_vocab_size
        # None at all is what `semantic` gives for a text that the model says nothing for.
        given = check_tokens(name, semantic_tokens, (None,), limit, may_be_empty=True).tolist()
        loaded = self.voices.get(voice)
        return Request.resolve("", [], loaded, checked, self.config, given=given, given_name=name)

    def from_texts(
        self, text: Any, voice: Any, params: Any, *, last_stage: Stage = "codec"
    ) -> tuple[list[Request], bool]:
        """Return the requests of a text or of a list of them, and whether it was a single one.

        Args:
            voice, params: one for all, or for a list of texts a list, one for each.
        """
        single = isinstance(text, str)
        texts = [text] if single else _as_list("text", text)
        arguments = _arguments_of_each(texts, voice, params, single=single, what="texts")
        return [self.from_text(*each, last_stage=last_stage) for each in arguments], single

    def from_token_lists(
        self, semantic_tokens: Any, voice: Any, params: Any
    ) -> tuple[list[Request], bool]:
        """Return the requests of semantic tokens or of a list of them, and whether it was one."""
        # A list of numbers is one utterance, like an array of them.
        single = not isinstance(semantic_tokens, (list, tuple)) or (
            bool(semantic_tokens) and all(_is_whole(each) for each in semantic_tokens)
        )
        tokens = [semantic_tokens] if single else list(semantic_tokens)
        arguments = _arguments_of_each(
            tokens, voice, params, single=single, what="entries of semantic_tokens"
        )
        requests = [
            self.from_tokens(*each, name="semantic_tokens" if single else f"semantic_tokens[{i}]")
            for i, each in enumerate(arguments)
        ]
        return requests, single

    def _spell(self, asked: bool | str | None, language: str) -> Callable[[str], str] | None:
        """Return what spells numbers and the like in words, if that is asked for.

        Args:
            asked: as in `GenerationParams.normalize_text`; None is what the checkpoint says.
            language: that of the text.
        """
        chosen = self.config.normalize_text if asked is None else asked
        if chosen is False:
            return None
        return self._spelling.load(language if chosen is True else str(chosen))

    def split(
        self,
        text: str,
        *,
        language: str = "en",
        max_tokens: int | None = None,
        normalize_text: bool | str | None = None,
    ) -> list[str]:
        """Split a text into sentences, and those too long for one utterance into parts.

        Args:
            normalize_text: as in `GenerationParams`.

        Raises:
            InputError: an argument is wrong, or nothing of the text can be said.
        """
        if not is_language(language):
            raise InputError(f'language must be a code such as "en", got {language!r}')
        rules = self.config.semantic_rules
        limit = rules.max_new_tokens
        if max_tokens is not None:
            check_integer("max_tokens", max_tokens, "an integer >= 1", 1, math.inf)
            limit = min(limit, max_tokens)
        pieces = split_text(
            text,
            max_tokens=self.config.max_text_tokens,
            max_duration_s=limit / rules.semantic_rate_hz,
            count_tokens=self.tokenizer.count,
            language=language,
            spell=self._spell(normalize_text, language),
        )
        # Invisible characters are no tokens; a piece of nothing else cannot be said.
        sayable = [piece for piece in pieces if self.tokenizer.count(piece)]
        if not sayable:
            raise InputError(f"text must hold something the tokenizer knows, got {text!r}")
        return sayable


def checked_params(params: Any) -> GenerationParams:
    """Return `params`, or the defaults for None.

    Raises:
        InputError: they are something else.
    """
    if params is None:
        return GenerationParams()
    if not isinstance(params, GenerationParams):
        raise InputError(f"params must be GenerationParams, got {type(params).__name__}")
    return params


def _is_whole(value: Any) -> bool:
    """Return True for a whole number of Python, numpy or torch."""
    is_number = isinstance(value, Real) or getattr(value, "ndim", None) == 0
    return is_number and is_finite(value) and value == int(value)


def _as_list(name: str, values: Any) -> list[Any]:
    if not isinstance(values, Sequence) or isinstance(values, (bytes, bytearray)):
        raise InputError(
            f"{name} must be a string or a list of strings, got {type(values).__name__}"
        )
    return list(values)


def _arguments_of_each(
    first: Sequence[Any], voice: Any, params: Any, *, single: bool, what: str
) -> list[tuple[Any, Any, Any]]:
    """Return (text or tokens, voice, params) of each; `what` is what errors call the first."""
    if single:
        return [(first[0], voice, params)]
    n = len(first)
    voices = _one_each("voice", voice, n, what, (str, os.PathLike, Mapping, Voice))
    all_params = _one_each("params", params, n, what, (GenerationParams,))
    return list(zip(first, voices, all_params, strict=True))


def _one_each(name: str, value: Any, count: int, what: str, single: tuple[type, ...]) -> list[Any]:
    """Return `value` for each of `count` utterances, or the list of as many that it is."""
    if value is None or isinstance(value, single):
        return [value] * count
    if not isinstance(value, Sequence):
        raise InputError(f"{name} must be one value or a list of them, got {type(value).__name__}")
    if len(value) != count:
        raise InputError(
            f"{name} must have one entry for each of the {count} {what}, got {len(value)}"
        )
    return list(value)


def _sampling(
    stage: Stage,
    params: GenerationParams,
    default: SamplingDefaults,
    seed: int,
    *,
    min_eos_p: float = 0.0,
    min_new_tokens: int = 0,
) -> SamplingParams:
    def pick(name: str, otherwise: float) -> float:
        asked = params.for_stage(stage, name)
        return otherwise if asked is None else asked

    temperature = float(pick("temperature", default.temperature))
    return SamplingParams(
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_k=int(pick("top_k", default.top_k)),
        top_p=float(pick("top_p", default.top_p)),
        seed=seed,
        min_eos_p=min_eos_p,
        min_new_tokens=min_new_tokens,
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
    """Check given tokens against what was asked for; they may exceed the model's own limit."""
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
