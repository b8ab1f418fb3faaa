"""Plain data that users hold: what they ask for, what they get, and the errors in between."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, SupportsFloat

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

STAGES = ("semantic", "coarse", "fine")
SEED_LIMIT = 2**64


class BarkFastError(Exception):
    """The base of every error that this library raises on purpose."""


class InputError(BarkFastError, ValueError):
    """An argument is not what it must be; the message names it, the requirement and the value."""


class GenerationError(BarkFastError):
    """Some utterances of a list failed.

    Attributes:
        results: for each text, in order, its Speech or the error that it failed with.
    """

    def __init__(self, results: Sequence[Speech | Exception]) -> None:
        self.results = list(results)
        errors = [(i, r) for i, r in enumerate(self.results) if isinstance(r, Exception)]
        index, first = errors[0]
        super().__init__(
            f"{len(errors)} of {len(self.results)} utterances failed; text {index}: {first!r} "
            "(results holds the others)"
        )


class QueueFullError(BarkFastError):
    """More utterances are waiting than an AsyncBark was allowed."""


class ClosedError(BarkFastError):
    """An AsyncBark takes no more requests, or gave up this one, because it was closed."""


class CheckpointError(BarkFastError, ValueError):
    """A checkpoint cannot be used; the message names the file and the key or tensor."""


class BarkFastWarning(UserWarning):
    """Something was done differently from what was asked; the message says what and why."""


def is_finite(number: SupportsFloat) -> bool:
    """math.isfinite, that is False for an integer beyond every float too."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def check_number(
    name: str, value: object, requirement: str, low: float, high: float, *, low_open: bool = False
) -> None:
    number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    inside = (
        number
        and is_finite(value)  # type: ignore[arg-type]
        and (low < value if low_open else low <= value)  # type: ignore[operator]
        and value <= high  # type: ignore[operator]
    )
    if not inside:
        raise InputError(f"{name} must be {requirement}, got {value!r}")


def check_integer(name: str, value: object, requirement: str, low: int, high: float) -> None:
    integer = isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))
    if not (integer and low <= int(value) <= high):  # type: ignore[call-overload]
        raise InputError(f"{name} must be {requirement}, got {value!r}")


def check_seed(name: str, value: object) -> None:
    check_integer(name, value, "an integer from 0 to 2**64 - 1", 0, SEED_LIMIT - 1)


def check_tokens(name: str, value: object, shape: tuple[int | None, ...], limit: int) -> IntArray:
    """`value` as a new int64 array if it holds tokens from 0 to `limit` - 1 in that shape, in which
    None is any length but zero.

    Raises:
        InputError: it is not that; `name` is what the message calls it.
    """
    wanted = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
    if value is None:
        raise InputError(f"{name} {wanted} is missing")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of integers: {error}") from error
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must hold integers, got {array.dtype}")
    if array.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, array.shape, strict=True)
    ):
        raise InputError(f"{name} must have shape {wanted}, got {list(array.shape)}")
    if array.size == 0:
        raise InputError(f"{name} must not be empty")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
        raise InputError(f"{name} must hold values from 0 to {limit - 1}, got {low} to {high}")
    return np.array(array, dtype=np.int64)


@dataclass(frozen=True)
class GenerationParams:
    """How one utterance is generated. None means: what the checkpoint says, else Bark's default.

    `temperature`, `top_k` and `top_p` hold for all three stages; the same name with a stage in
    front (`coarse_temperature`) overrides it for that stage.

    Attributes:
        temperature: divides the logits; 0 picks the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities reach p; 1 keeps all.
        min_eos_p: end the text as soon as the end token's probability exceeds this; 0 never does.
        min_semantic_tokens: the text does not end before so many semantic tokens.
        max_semantic_tokens: at most this many semantic tokens (about 50 a second).
        max_duration_s: at most this many seconds of audio.
        seed: 0 .. 2**64 - 1; the same seed gives the same speech, alone or in a list. None draws
            one, which `Speech.seed` tells.

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
    seed: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            if f.name.endswith("temperature"):
                check_number(f.name, value, "a finite number >= 0", 0, math.inf)
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
            elif f.name == "seed":
                check_seed(f.name, value)

    def for_stage(self, stage: str, name: str) -> float | None:
        """`name` ("temperature", "top_k" or "top_p") as asked for `stage`, None if not asked."""
        own: float | None = getattr(self, f"{stage}_{name}")
        general: float | None = getattr(self, name)
        return general if own is None else own


@dataclass(frozen=True, eq=False)
class Voice:
    """A speaker: the tokens of something that was said, given to Bark as its own past.

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

    ARRAYS = ("semantic_prompt", "coarse_prompt", "fine_prompt")

    def arrays(self) -> Mapping[str, IntArray]:
        """The three arrays by the names that preset files use."""
        return {name: getattr(self, name) for name in self.ARRAYS}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a preset that this library, transformers and suno's code read (one .npz file).

        Raises:
            InputError: the ending or the folder is wrong.
        """
        target = check_path(path, VOICE_ENDINGS)
        with replacing(target) as partial, partial.open("wb") as file:
            np.savez(file, **self.arrays())  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Speech:
    """One utterance, and everything that was generated on the way to it.

    Attributes:
        samples: float32 [T], mono, in -1 .. 1.
        sample_rate_hz: samples a second.
        text: what was said, white space normalised.
        semantic_tokens: int64 [S].
        coarse_tokens: int64 [n_coarse, F], codes of the first codebooks.
        fine_tokens: int64 [n_fine, F], codes of all codebooks.
        timings: seconds spent in each stage ("semantic", "coarse", "fine", "codec").
        finish_reason: "end" (the model ended the text), "length" (a limit did) or "given" (the
            semantic tokens were not drawn; see `Bark.speak_tokens`).
        seed: the seed it can be made again with.
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
        """This utterance as the voice of the next one.

        Raises:
            InputError: nothing was said.
        """
        if not (self.semantic_tokens.size and self.fine_tokens.size):
            raise InputError("to_voice() needs a speech with at least one frame, got an empty one")
        return Voice(self.semantic_tokens, self.coarse_tokens, self.fine_tokens, name)

    def save(self, path: str | os.PathLike[str], *, subtype: str | None = None) -> None:
        """Write an audio file; the name's ending says which kind.

        Args:
            path: ends in .wav or .flac. The file appears only when it is whole.
            subtype: "PCM_16" (the default), "PCM_24" or, for .wav, "FLOAT".

        Raises:
            InputError: another ending or subtype.
        """
        save_audio(path, self.samples, self.sample_rate_hz, subtype=subtype)


VOICE_ENDINGS = (".npz",)
_AUDIO_SUBTYPES = {".wav": ("PCM_16", "PCM_24", "FLOAT"), ".flac": ("PCM_16", "PCM_24")}


def check_path(
    path: str | os.PathLike[str], endings: Collection[str], *, name: str = "path"
) -> Path:
    """`path` as a Path if a file of that name, with one of `endings`, can be written.

    Raises:
        InputError: the ending or the folder is wrong; `name` is what the message calls it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{name} must be a file name, got {path!r}")
    target = Path(path)
    if target.suffix.lower() not in endings:
        raise InputError(f"{name} must end in {' or '.join(endings)}, got {str(path)!r}")
    if target.is_dir():
        raise InputError(f"{name} must name a file, got the folder {str(path)!r}")
    if not target.parent.is_dir():
        raise InputError(f"{name} must be in a folder that exists, got {str(path)!r}")
    return target


def check_audio_path(
    path: str | os.PathLike[str], subtype: str | None = None, *, name: str = "path"
) -> Path:
    """The same for an audio file of that `subtype`."""
    target = check_path(path, _AUDIO_SUBTYPES, name=name)
    subtypes = _AUDIO_SUBTYPES[target.suffix.lower()]
    if subtype is not None and subtype not in subtypes:
        raise InputError(
            f"subtype must be one of {', '.join(subtypes)} for {target.suffix}, got {subtype!r}"
        )
    return target


def save_audio(
    path: str | os.PathLike[str],
    samples: FloatArray,
    sample_rate_hz: int,
    *,
    subtype: str | None = None,
) -> None:
    """Write float32 [T] samples to a .wav or .flac file; see `Speech.save`."""
    import soundfile  # only those who save files need it

    target = check_audio_path(path, subtype)
    with replacing(target) as partial:
        try:
            soundfile.write(
                partial,
                samples,
                sample_rate_hz,
                subtype=subtype or "PCM_16",
                format=target.suffix[1:].upper(),
            )
        except soundfile.LibsndfileError as error:  # a RuntimeError: disk full, not permitted
            raise OSError(f"{target}: {error}") from error


class replacing:  # noqa: N801 - a context manager, named as a verb
    """`with replacing(target) as partial`: what is written to `partial` becomes `target` if all
    went well and vanishes if not, so that no reader ever meets half a file."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.partial = target.with_name(f".{target.name}.{os.getpid()}.partial")

    def __enter__(self) -> Path:
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.partial.replace(self.target)
        finally:
            self.partial.unlink(missing_ok=True)
