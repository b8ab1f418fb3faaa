"""Write samples to audio files, whole or while they are made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bark_fast.encoders import SUBTYPES, check_encoding, make_encoder
from bark_fast.errors import InputError
from bark_fast.files import (
    check_file,
    check_path,
    is_file,
    open_output,
    write_all,
    writing,
)

FORMATS = tuple(SUBTYPES)
"""The names of the audio formats, each of which is the ending of its files too."""

AudioTarget = str | bytes | os.PathLike[Any] | BinaryIO
"""Where audio goes: the path of a file, or a binary file that is open."""

_ENDINGS: Mapping[str, str] = {f".{kind}": kind for kind in FORMATS}


def check_audio_path(
    path: AudioTarget,
    subtype: str | None = None,
    *,
    format: str | None = None,
    name: str = "path",
) -> Path | BinaryIO:
    """Return `path`, as a Path if it is no file, if such an audio file may be written.

    Args:
        path, subtype, format: as in `Speech.save`.
        name: the argument in error messages.

    Raises:
        InputError: the ending, the folder, the format or the subtype is wrong.
    """
    return _check_target(path, subtype, format, name)[0]


def save_audio(
    path: AudioTarget,
    samples: npt.NDArray[np.float32],
    sample_rate_hz: int,
    *,
    subtype: str | None = None,
    format: str | None = None,
) -> None:
    """Write float32 [T] samples to an audio file; see `Speech.save`.

    Raises:
        InputError: the path, the format or the subtype is wrong.
        OSError: the file cannot be written.
    """
    target, kind, chosen = _check_target(path, subtype, format, "path")
    encoder = make_encoder(kind, chosen, sample_rate_hz)
    try:
        encoder.feed(_checked(samples))
        encoder.finish()
        content = encoder.head + encoder.read(0)[len(encoder.head) :]
    finally:
        encoder.close()
    with writing(target) as file:
        write_all(file, content)


class AudioWriter:
    """Writes an audio file while it is made, such as a long text sentence by sentence.

        with AudioWriter("story.mp3", bark.sample_rate_hz) as writer:
            for part in bark.stream(story):
                writer.write(part.samples)

    A path gets its file at the end, also when the block raises: then it holds what was written
    until then, if that was anything. Pipes, devices and file objects get each piece at once. Where
    nothing written can be changed, the header of a WAV file says "until the end" (0xFFFFFFFF), and
    that of FLAC "unknown".

    Args:
        target: a path or a binary file, which stays open.
        sample_rate_hz: samples a second.
        subtype, format: as in `Speech.save`.
        name: the argument `target` in error messages.

    Attributes:
        n_samples: how many were written.
        saved: the file is whole, and there.

    Raises:
        InputError: the path, the format or the subtype is wrong.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        target: AudioTarget,
        sample_rate_hz: int,
        *,
        subtype: str | None = None,
        format: str | None = None,
        name: str = "path",
    ) -> None:
        place, kind, chosen = _check_target(target, subtype, format, name)
        self.sample_rate_hz = sample_rate_hz
        self.n_samples = 0
        self.saved = False
        self._encoder = make_encoder(kind, chosen, sample_rate_hz)
        try:
            self._output = open_output(place, streamed=True)
        except BaseException:
            self._encoder.close()
            raise
        self._base = self._output.file.tell() if self._output.seekable else 0
        self._n_bytes = 0
        self._open = True

    @property
    def duration_s(self) -> float:
        """The length of what was written, in seconds."""
        return self.n_samples / self.sample_rate_hz

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self.n_samples:
            # If writing is what failed, the block's error says so, and the file is given up.
            with contextlib.suppress(OSError):
                self.close()
        else:
            self.discard()

    def write(self, samples: npt.ArrayLike) -> None:
        """Write the next samples, float32 [T].

        Raises:
            InputError: they have another shape, or this was closed.
            OSError: they cannot be written.
        """
        self._check_open()
        checked = _checked(samples)
        self._encoder.feed(checked)
        self.n_samples += len(checked)
        self._pass_on()

    def close(self) -> None:
        """End the file; a second call does nothing.

        Raises:
            OSError: it cannot be written.
        """
        if not self._open:
            return
        try:
            self._encoder.finish()
            self._pass_on()
            if self._output.seekable and self._encoder.head:
                self._output.file.seek(self._base)
                write_all(self._output.file, self._encoder.head)
                self._output.file.seek(self._base + self._n_bytes)
                _flush(self._output.file)
            self._output.commit()
        except BaseException:
            self.discard()
            raise
        self.saved = True
        self._end()

    def discard(self) -> None:
        """Give the file up: a path keeps what it had before."""
        if self._open:
            self._output.discard()
            self._end()

    def _pass_on(self) -> None:
        """Write what the encoder has and the file has not."""
        skipped = 0 if self._output.seekable else self._encoder.placeholder
        content = self._encoder.read(skipped + self._n_bytes)
        if self._output.seekable:  # an interruption may have come in the middle of the last write
            self._output.file.seek(self._base + self._n_bytes)
        write_all(self._output.file, content)
        _flush(self._output.file)
        self._n_bytes += len(content)

    def _end(self) -> None:
        self._open = False
        self._encoder.close()

    def _check_open(self) -> None:
        if not self._open:
            raise InputError("write() needs an open AudioWriter, got a closed one")


def _check_target(
    target: Any, subtype: str | None, format: str | None, name: str
) -> tuple[Path | BinaryIO, str, str]:
    """Return a path as a Path or a file object as it is, its format, and its subtype."""
    if format is not None and (not isinstance(format, str) or format.lower() not in FORMATS):
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    kind = None if format is None else format.lower()
    shown = kind
    if is_file(target):
        check_file(target, name=name)
        if kind is None:
            of_file = getattr(target, "name", "")
            ending = os.path.splitext(of_file)[1] if isinstance(of_file, str) else ""
            kind, shown = _ENDINGS.get(ending.lower()), ending
        if kind is None:
            raise InputError(
                f"format must be one of {', '.join(FORMATS)} for a file without such a name, "
                "got None"
            )
    else:
        target = check_path(target, () if kind else tuple(_ENDINGS), name=name)
        if kind is None:
            # Only a pipe or a device may have another ending, and what reads from it can tell WAV.
            kind, shown = _ENDINGS.get(target.suffix.lower(), "wav"), target.suffix or "wav"
    return target, kind, check_encoding(kind, subtype, shown=shown)


def _flush(file: Any) -> None:
    """Pass on what a file holds back, so that those who listen hear it."""
    if (flush := getattr(file, "flush", None)) is not None:
        flush()


def _checked(samples: npt.ArrayLike) -> npt.NDArray[np.float32]:
    array = np.asarray(samples, dtype=np.float32)
    if array.ndim != 1:
        raise InputError(f"samples must have shape [T], got {list(array.shape)}")
    return array
