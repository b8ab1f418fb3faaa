"""Turn samples into the bytes of an HTTP response, in the formats of OpenAI's speech API.

All of it is `AudioWriter`'s work, so a response holds the bytes that `bark-fast say` writes: one
that is streamed what goes into a pipe, one that is sent whole what lies in a file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bark_fast.audio import AudioWriter
from bark_fast.encoders import check_encoding, make_encoder
from bark_fast.errors import InputError

CONTENT_TYPES: Mapping[str, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
"""The response formats of OpenAI's API, and the media type of each."""

HELD_BACK_S: Mapping[str, float] = {
    "mp3": 0.11,  # LAME looks two frames of 24 ms ahead, and cannot give half of one
    "opus": 0.087,  # a page of 60 ms, a packet of 20 ms, and 6.5 ms that Opus looks ahead
    "aac": 0.128,  # three frames of 43 ms
    "flac": 0.048,  # a block
    "wav": 0.0,
    "pcm": 0.0,
}
"""At most so much of what was fed at 24 kHz cannot be heard yet; in seconds, for streams."""

PCM_RATE_HZ = 24_000
"""OpenAI's API has no place for the rate of `pcm`, whose samples come without a header."""


def check_format(response_format: str, sample_rate_hz: int) -> None:
    """Check that speech of this rate can be sent in this format.

    Raises:
        InputError: the format is unknown, needs a package that is not there, or does not take the
            sample rate.
    """
    if response_format not in CONTENT_TYPES:
        raise InputError(
            f"response_format must be one of {', '.join(CONTENT_TYPES)}, got {response_format!r}"
        )
    if response_format == "pcm" and sample_rate_hz != PCM_RATE_HZ:
        raise InputError(
            f"response_format must be one for {sample_rate_hz} Hz, got 'pcm', "
            f"which is {PCM_RATE_HZ} Hz by definition"
        )
    subtype = check_encoding(response_format, None)
    make_encoder(response_format, subtype, sample_rate_hz).close()  # refuses other rates


class SpeechEncoder:
    """Encodes the samples of one response, piece by piece.

    Args:
        response_format: one of `CONTENT_TYPES`.
        sample_rate_hz: samples a second.
        streamed: give out bytes as soon as they are there. The length is not known then: WAV says
            "until the end" (0xFFFFFFFF), FLAC "unknown", and MP3 lacks the frame that tells it.
            Otherwise all bytes come at the end, with a header that tells the length.

    Raises:
        InputError: as `check_format`.
    """

    def __init__(self, response_format: str, sample_rate_hz: int, *, streamed: bool) -> None:
        check_format(response_format, sample_rate_hz)
        self._streamed = streamed
        self._sink: io.BytesIO = _Forward() if streamed else io.BytesIO()
        self._writer = AudioWriter(self._sink, sample_rate_hz, format=response_format)

    def feed(self, samples: npt.NDArray[np.float32]) -> bytes:
        """Take the next samples, float32 [T]; return what can be sent now.

        Raises:
            InputError: another shape, or the end was there already.
        """
        self._writer.write(samples)
        return self._take() if self._streamed else b""

    def finish(self) -> bytes:
        """Take note that all samples are there; return the rest."""
        self._writer.close()
        return self._take()

    def close(self) -> None:
        """Free what is held; to be called at the end, whatever came before."""
        self._writer.discard()
        self._sink.close()

    def _take(self) -> bytes:
        content = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return content


class _Forward(io.BytesIO):
    """Memory that looks like a pipe to those who write: nothing written can be changed."""

    def seekable(self) -> bool:
        return False
