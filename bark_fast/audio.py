"""Write samples to audio files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bark_fast.errors import InputError
from bark_fast.files import check_path, replacing

_SUBTYPES = {".wav": ("PCM_16", "PCM_24", "FLOAT"), ".flac": ("PCM_16", "PCM_24")}


def check_audio_path(
    path: str | os.PathLike[str], subtype: str | None = None, *, name: str = "path"
) -> Path:
    """Return `path` as a Path, if an audio file of that name and `subtype` can be written.

    Args:
        subtype: as in `Speech.save`.
        name: the argument in error messages.

    Raises:
        InputError: the ending, the folder or the subtype is wrong.
    """
    target = check_path(path, _SUBTYPES, name=name)
    subtypes = _SUBTYPES[target.suffix.lower()]
    if subtype is not None and subtype not in subtypes:
        raise InputError(
            f"subtype must be one of {', '.join(subtypes)} for {target.suffix}, got {subtype!r}"
        )
    return target


def save_audio(
    path: str | os.PathLike[str],
    samples: npt.NDArray[np.float32],
    sample_rate_hz: int,
    *,
    subtype: str | None = None,
) -> None:
    """Write float32 [T] samples to a .wav or .flac file; see `Speech.save`.

    Raises:
        InputError: the path or the subtype is wrong.
        OSError: the file cannot be written.
    """
    import soundfile  # only those who save files need it

    target = check_audio_path(path, subtype)
    if not len(samples) and target.suffix.lower() == ".flac":
        raise InputError(
            "path must end in .wav for a speech without samples, which no .flac file can hold, got "
            f"{str(path)!r}"
        )
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
