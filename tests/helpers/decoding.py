"""Decode audio with FFmpeg's libraries: another program than the one that encoded it."""

from __future__ import annotations

import io

import av
import numpy as np

from bark_fast.server.encode import PCM_RATE_HZ

AAC_FRAME = 1024


def decode(content: bytes) -> tuple[np.ndarray, int]:
    """Return float32 [T] samples of mono audio, and their rate in Hz.

    A file that ends in the middle of a frame gives what comes before it.
    """
    pieces, rates = [np.zeros(0, dtype=np.float32)], set()
    with av.open(io.BytesIO(content)) as file:
        assert len(file.streams) == 1
        for frame in file.decode(audio=0):
            samples = frame.to_ndarray()
            assert samples.shape[0] == 1
            pieces.append(_as_float(samples[0]))
            rates.add(frame.sample_rate)
    (rate,) = rates
    return np.concatenate(pieces), rate


def decode_response(content: bytes, response_format: str) -> tuple[np.ndarray, int]:
    """Return what `decode` does of an answer in one of OpenAI's formats."""
    if response_format == "pcm":
        return np.frombuffer(content, "<i2") / 2**15, PCM_RATE_HZ
    return decode(content)


def _as_float(samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind == "i":
        return (samples / 2.0 ** (8 * samples.itemsize - 1)).astype(np.float32)
    return samples


def aac_length(n_samples: int) -> int:
    """Return how many samples a decoder makes of an ADTS file: whole frames, and one before them,
    because ADTS has no place to say where the sound begins."""
    return -(-(n_samples + AAC_FRAME) // AAC_FRAME) * AAC_FRAME
