"""Decode what the server sends with a program that is not ours."""

from __future__ import annotations

import io

import av
import numpy as np

PCM_RATE_HZ = 24_000


def decoded(content: bytes, response_format: str) -> tuple[np.ndarray, int]:
    """Return what FFmpeg hears in an answer: float samples [T] and their rate in Hz."""
    if response_format == "pcm":
        return np.frombuffer(content, "<i2") / 2**15, PCM_RATE_HZ
    with av.open(io.BytesIO(content)) as file:
        resampler = av.AudioResampler(format="flt", layout="mono")
        frames = [out for frame in file.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([f.to_ndarray()[0] for f in frames]), frames[0].sample_rate
