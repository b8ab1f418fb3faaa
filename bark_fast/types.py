"""Plain data that users hold: what they ask for and what they get."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt

from bark_fast.audio import AudioTarget, save_audio
from bark_fast.errors import InputError
from bark_fast.files import check_file, check_path, is_file, writing
from bark_fast.validation import (
    check_integer,
    check_number,
    check_seed,
    check_temperature,
    check_tokens,
    is_language,
)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

TokenStage = Literal["semantic", "coarse", "fine"]
TOKEN_STAGES: tuple[TokenStage, ...] = get_args(TokenStage)
"""The stages that draw tokens. The index of one is the number that keeps its random numbers apart
from the other stages'."""

Stage = Literal[TokenStage, "codec"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""All stages, in the order in which an utterance passes through them."""


@dataclass(frozen=True)
class GenerationParams:
    """Parameters of generating one utterance.

    None means what the checkpoint says, and where it says nothing Bark's default. `temperature`,
    `top_k` and `top_p` hold for all stages that draw tokens; the same name with a stage in front
    (`coarse_temperature`) overrides it for that stage.

    Attributes:
        temperature: divides the logits; 0 picks the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities reach p; 1 keeps all.
        min_eos_p: end the text as soon as the end token's probability exceeds this; 0 never does.
        min_semantic_tokens: the text does not end before this many semantic tokens.
        max_semantic_tokens: at most this many semantic tokens (about 50 a second).
        max_duration_s: at most this many seconds of audio.
        normalize_text: spell numbers, dates, money, units and abbreviations in words before the
            model reads the text (extra `text`): True for English, in `stream` for its language, or
            the code of a language ("de"). Bark's own models read digits, so that None is False for
            them; generation_config.json may say otherwise.
        seed: 0 .. 2**64 - 1; the same seed gives the same speech, alone or in a list. None draws
            one, and `Speech.seed` says which.

    Raises:
        InputError: a value is out of its range.
    """

    temperature: float | None = None
    semantic_temperature: float | None = None
    coarse_temperature: float | None = None
    fine_temperature: float | None = None
    top_k: int | None = None
    semantic_top_k: int | None = None
    coarse_top_k: int | None = None
    fine_top_k: int | None = None
    top_p: float | None = None
    semantic_top_p: float | None = None
    coarse_top_p: float | None = None
    fine_top_p: float | None = None
    min_eos_p: float | None = None
    min_semantic_tokens: int | None = None
    max_semantic_tokens: int | None = None
    max_duration_s: float | None = None
    normalize_text: bool | str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            if f.name.endswith("temperature"):
                check_temperature(f.name, value)
            elif f.name.endswith("top_k"):
                check_integer(f.name, value, "an integer >= 0 (0: no limit)", 0, math.inf)
            elif f.name.endswith("top_p"):
                check_number(f.name, value, "a number above 0, at most 1", 0, 1, low_open=True)
            elif f.name == "min_eos_p":
                check_number(f.name, value, "a number from 0 (never) to 1", 0, 1)
            elif f.name == "min_semantic_tokens":
                check_integer(f.name, value, "an integer >= 0", 0, math.inf)
            elif f.name == "max_semantic_tokens":
                check_integer(f.name, value, "an integer >= 1", 1, math.inf)
            elif f.name == "max_duration_s":
                check_number(f.name, value, "a finite number above 0", 0, math.inf, low_open=True)
            elif f.name == "normalize_text":
                if not isinstance(value, bool) and not is_language(value):
                    raise InputError(
                        f'{f.name} must be True, False or a code such as "en", got {value!r}'
                    )
            elif f.name == "seed":
                check_seed(f.name, value)

    def for_stage(self, stage: str, name: str) -> float | None:
        """Return what is asked of a stage, or None if nothing is.

        Args:
            stage: one of `TOKEN_STAGES`.
            name: "temperature", "top_k" or "top_p".
        """
        specific: float | None = getattr(self, f"{stage}_{name}")
        general: float | None = getattr(self, name)
        return general if specific is None else specific


@dataclass(frozen=True, eq=False)
class Voice:
    """A speaker: the tokens of something that was said, which Bark takes for what it said before.

    Attributes:
        semantic_prompt: int64 [S], semantic tokens.
        coarse_prompt: int64 [n_coarse, F], the first codebooks of F frames.
        fine_prompt: int64 [n_fine, F], all codebooks of the same frames.
        name: where it came from, for messages.
    """

    semantic_prompt: IntArray
    coarse_prompt: IntArray
    fine_prompt: IntArray
    name: str = field(default="voice", compare=False)

    ENDINGS = (".npz",)  # the endings of preset files
    ARRAYS = ("semantic_prompt", "coarse_prompt", "fine_prompt")

    def arrays(self) -> Mapping[str, IntArray]:
        """Return the three arrays by the names that preset files use."""
        return {name: getattr(self, name) for name in self.ARRAYS}

    def save(self, path: str | bytes | os.PathLike[Any] | BinaryIO) -> None:
        """Write a preset that this library, transformers and suno's code read (one .npz file).

        Args:
            path: ends in .npz; or a binary file, which stays open.

        Raises:
            InputError: the ending or the folder is wrong, or an array is not of tokens.
            OSError: the file cannot be written.
        """
        if is_file(path):
            check_file(path)
        else:
            path = check_path(path, self.ENDINGS)  # type: ignore[arg-type]
        # numpy would pickle anything else, and nobody could read it.
        arrays = {
            key: check_tokens(key, array, (None,) if key == "semantic_prompt" else (None,) * 2)
            for key, array in self.arrays().items()
        }
        with writing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Speech:
    """An utterance, and everything that was generated on the way to it.

    Attributes:
        samples: float32 [T], mono, in -1 .. 1.
        sample_rate_hz: samples a second.
        text: what was said, with white space normalised.
        semantic_tokens: int64 [S].
        coarse_tokens: int64 [n_coarse, F], codes of the first codebooks.
        fine_tokens: int64 [n_fine, F], codes of all codebooks.
        timings: seconds spent in each of `STAGES` that it passed through.
        finish_reason: "end" (the model ended the text), "length" (a limit did) or "given" (the
            semantic tokens were not drawn; see `Bark.speak_tokens`).
        seed: the seed with which it can be made again.
    """

    samples: FloatArray
    sample_rate_hz: int
    text: str
    semantic_tokens: IntArray
    coarse_tokens: IntArray
    fine_tokens: IntArray
    timings: Mapping[str, float]
    finish_reason: Literal["end", "length", "given"]
    seed: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz

    def to_voice(self, name: str = "speech") -> Voice:
        """Return this utterance as a voice for the next one.

        Raises:
            InputError: nothing was said.
        """
        if not (self.semantic_tokens.size and self.fine_tokens.size):
            raise InputError("to_voice() needs a speech with at least one frame, got an empty one")
        return Voice(self.semantic_tokens, self.coarse_tokens, self.fine_tokens, name)

    def save(
        self, path: AudioTarget, *, subtype: str | None = None, format: str | None = None
    ) -> None:
        """Write an audio file; `AudioWriter` writes one piece by piece.

        Args:
            path: anything that `open` takes. The file appears only when it is whole; links are
                followed, and pipes and devices written to. Or a binary file, which is written where
                it stands and stays open.
            subtype: "PCM_16" (the default), "PCM_24" or, for wav and pcm, "FLOAT"; for ogg "OPUS"
                (the default) or "VORBIS".
            format: "wav", "flac", "mp3", "opus" or "ogg" (both Opus in Ogg), "aac" (as ADTS, which
                needs the extra `aac`), "pcm" or "raw" (both little-endian samples alone). None
                takes the ending of the name, and wav for a pipe or a device without one.

        Raises:
            InputError: another ending, format or subtype, or one whose package is missing.
            OSError: the file cannot be written.
        """
        save_audio(path, self.samples, self.sample_rate_hz, subtype=subtype, format=format)
