"""Find voice presets by name, read them from files, and check that they fit a checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.layout import PRESETS_FILE
from bark_fast.checkpoint.opening import open_checkpoint
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.suno import SunoFiles
from bark_fast.checkpoint.unreadable import why_unreadable
from bark_fast.errors import CheckpointError, InputError, warn
from bark_fast.types import IntArray, Voice
from bark_fast.validation import as_path, check_tokens

# Folders of suno's presets, one file each, as its code keeps them; the checkpoint's own last.
_NPZ_FOLDERS = ("prompts/", "assets/prompts/", "")

VoiceLike = str | os.PathLike[str] | Mapping[str, Any] | Voice


class VoiceLibrary:
    """The presets of one checkpoint, and a check of other voices for it.

    Presets are those that speaker_embeddings_path.json names (transformers' layout), and without it
    the .npz files of a folder: suno's prompts/v2/en_speaker_1.npz is "v2/en_speaker_1".
    """

    def __init__(self, source: Source, config: Config) -> None:
        self._source = source
        self.config = config
        self._loaded: dict[str, Voice] = {}
        self._presets: Mapping[str, Any] = {}
        if source.find(PRESETS_FILE) is not None:
            presets = source.read_json(PRESETS_FILE)
            presets.pop("repo_or_path", None)
            self._presets = presets
        else:
            self._presets = _find_npz(source)

    @property
    def names(self) -> list[str]:
        """The names of the checkpoint's presets, in the checkpoint's order."""
        return list(self._presets)

    def get(self, voice: VoiceLike | None, *, name: str = "voice") -> Voice | None:
        """Return `voice` as a Voice that fits the checkpoint; None stays None.

        Args:
            voice: a preset's name, the path of an .npz file, a mapping with the three arrays
                ("semantic_prompt" [S], "coarse_prompt" [n_coarse, F], "fine_prompt" [n_fine, F]),
                or a Voice.
            name: the argument in error messages.

        Raises:
            InputError: there is no such voice, or its arrays do not fit.
        """
        if voice is None:
            return None
        if isinstance(voice, str) and voice in self._loaded:
            return self._loaded[voice]
        arrays, voice_name = self.arrays(voice, name=name)
        checked = check_voice(arrays, self.config, name=voice_name, argument=name)
        warn_of_mismatch(checked, self.config, name)
        if isinstance(voice, str) and voice in self._presets:
            self._loaded[voice] = checked
        return checked

    def arrays(self, voice: VoiceLike, *, name: str = "voice") -> tuple[Mapping[str, Any], str]:
        """Return the arrays that `voice` holds, unchecked, and its name.

        Arguments are those of `get`.

        Raises:
            InputError: there is no such voice, or its file is damaged.
        """
        if isinstance(voice, Voice):
            return voice.arrays(), voice.name
        if isinstance(voice, Mapping):
            return voice, name
        if isinstance(voice, str) and voice in self._presets:
            return self._read_preset(voice, name), voice
        if (
            isinstance(voice, (str, os.PathLike))
            and (path := as_path(name, voice)).suffix.lower() in Voice.ENDINGS
        ):
            return read_npz(path, name), str(voice)
        known = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        raise InputError(
            f"{name} must be a preset of this checkpoint ({known or 'it has none'}), the path "
            f"of an .npz file, a mapping of arrays or a Voice, got {voice!r}"
        )

    def _read_preset(self, name: str, argument: str) -> dict[str, Any]:
        files = self._presets[name]
        if isinstance(files, Path):
            return read_npz(files, argument)
        arrays = {}
        for key in Voice.ARRAYS:
            file = files.get(key) if isinstance(files, Mapping) else None
            if not isinstance(file, str):
                raise CheckpointError(
                    f"{PRESETS_FILE}: {name} must name a file for {key}, got {file!r}"
                )
            path = self._source.require(file)
            try:
                arrays[key] = np.load(path, allow_pickle=False)
                if not isinstance(arrays[key], np.ndarray):
                    raise ValueError("it is an archive")
            except Exception as error:  # a damaged header raises whatever Python's parser does
                reason = why_unreadable(path, error)
                raise CheckpointError(
                    f"{path}: is not a whole .npy file of numbers: {reason}"
                ) from error
        return arrays


def _find_npz(source: Source) -> dict[str, Path]:
    """Return the presets that are one .npz file each: name -> file."""
    presets: dict[str, Path] = {}
    for folder in _NPZ_FOLDERS:
        for file in source.matching(f"{folder}**/*.npz" if folder else "*.npz"):
            presets.setdefault(file[len(folder) :].removesuffix(".npz"), source.require(file))
    return presets


def read_npz(path: Path, argument: str) -> dict[str, Any]:
    """Read those of `Voice.ARRAYS` that an .npz file holds; nothing is unpickled.

    Args:
        argument: what is read for, in error messages.

    Raises:
        InputError: there is no such file, or it is damaged or not of plain arrays.
    """
    if not os.path.isfile(path):  # a name that is too long for a file is none
        raise InputError(f"{argument} must be a file that exists, got {str(path)!r}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in Voice.ARRAYS if key in stored}
    except Exception as error:  # numpy, zipfile and zlib each have their own
        reason = why_unreadable(path, error)
        raise InputError(
            f"{argument} {path} is not a whole .npz file of plain arrays: {reason}"
        ) from error


def prompt_limits(config: Config) -> dict[str, tuple[tuple[int | None, ...], int]]:
    """Return what each of `Voice.ARRAYS` must be, as (shape, limit) for `check_tokens`."""
    return {
        "semantic_prompt": ((None,), config.semantic_rules.semantic_vocab_size),
        "coarse_prompt": ((config.coarse_rules.n_coarse_codebooks, None), config.codebook_size),
        "fine_prompt": ((config.fine_rules.n_fine_codebooks, None), config.codebook_size),
    }


def check_voice(
    arrays: Mapping[str, Any],
    config: Config,
    *,
    name: str | None = "voice",
    argument: str = "voice",
    parts: Sequence[str] = Voice.ARRAYS,
) -> Voice:
    """Return the arrays as a Voice, if the checkpoint can use them as history.

    This is the check of every face. What transformers' BarkModel takes, it takes: each stage reads
    its own array, and only from its end, so fine_prompt may have more frames than coarse_prompt or
    fewer.

    Args:
        arrays: as `check_tokens` takes them.
        name: the voice's name; None if it has none.
        argument: the argument in error messages.
        parts: the arrays that are read; the others are empty in the Voice.

    Raises:
        InputError: an array is missing, of the wrong kind, shape or range, or too short.
    """
    voice = argument if name is None else f"{argument} {name!r}"

    def checked(key: str, shape: tuple[int | None, ...], limit: int) -> IntArray:
        label = f"{argument}[{key!r}]" if name is None else f"{voice}: {key}"
        if key not in parts:
            return np.empty([n or 0 for n in shape], dtype=np.int64)
        return check_tokens(label, arrays.get(key), shape, limit)

    semantic, coarse, fine = (
        checked(key, shape, limit) for key, (shape, limit) in prompt_limits(config).items()
    )
    if "coarse_prompt" in parts and not long_enough(semantic, coarse, config):
        raise InputError(
            f"{voice}: must hold at least 2 semantic tokens and "
            f"{math.ceil(config.semantic_to_coarse_ratio)} coarse tokens, "
            f"got {len(semantic)} and {coarse.size}"
        )
    return Voice(semantic, coarse, fine, argument if name is None else name)


def warn_of_mismatch(voice: Voice, config: Config, argument: str) -> None:
    """Warn if a voice's semantic and coarse tokens do not span the same time.

    The coarse stage pairs the wrong tokens then, which transformers does without a word.
    """
    semantic, coarse = voice.semantic_prompt, voice.coarse_prompt
    frames = len(semantic) * config.semantic_to_coarse_ratio / len(coarse)
    # Suno's code allows a ratio that rounds to the same tenth, about 3 %; short voices need a few
    # frames more.
    if abs(coarse.shape[1] - frames) > max(4.0, 0.05 * frames):
        warn(
            f"{argument} {voice.name!r}: coarse_prompt should have about {frames:.0f} frames for "
            f"{len(semantic)} semantic tokens, got {coarse.shape[1]}: the voice may not be met",
            stacklevel=3,
        )


def long_enough(semantic: IntArray, coarse: IntArray, config: Config) -> bool:
    """Return True if there are enough tokens for a voice's history.

    The coarse stage takes an even number of semantic tokens, and only those that the coarse tokens
    last for.
    """
    return len(semantic) >= 2 and coarse.size >= config.semantic_to_coarse_ratio


def open_voices(
    model: str | os.PathLike[str] | SunoFiles = "demo",
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> VoiceLibrary:
    """Return the voices of a checkpoint without its weights.

    Arguments are those of `Bark.from_pretrained`; `options` are its cache_dir, token, subfolder and
    variant.
    """
    checkpoint = open_checkpoint(model, revision, local_files_only, **options)
    return VoiceLibrary(checkpoint.source, checkpoint.config)
