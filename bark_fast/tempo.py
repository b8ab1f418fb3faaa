"""Make speech faster or slower, and keep its pitch.

WSOLA (W. Verhelst and M. Roelands, "An overlap-add technique based on waveform similarity (WSOLA)
for high quality time-scale modification of speech", ICASSP 1993): the output is a sum of windowed
frames of the input at even distances. Each frame is taken from near the place that the tempo says,
from where the wave is most like what follows the frame before it, so that periods stay whole.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bark_fast.errors import InputError
from bark_fast.validation import check_number

MIN_SPEED, MAX_SPEED = 0.25, 4.0
"""The range of OpenAI's speech API."""

# Longer frames blur sounds and, where a voice fades, pull its pitch down as they slow it.
_HOP_S = 0.01  # between frames of the output; a frame is two of these, two periods of 100 Hz
_SEARCH_S = 0.008  # so far from its place may a frame come, to either side: a period of 62 Hz

FloatArray = npt.NDArray[np.float32]


def check_speed(speed: float, *, name: str = "speed") -> None:
    """Check that `change_tempo` takes this speed.

    Raises:
        InputError: it does not.
    """
    check_number(name, speed, f"from {MIN_SPEED:g} to {MAX_SPEED:g}", MIN_SPEED, MAX_SPEED)


def change_tempo(samples: npt.ArrayLike, sample_rate_hz: int, speed: float) -> FloatArray:
    """Return speech that is `speed` times as fast, at the pitch that it had.

    Args:
        samples: float32 [T].
        sample_rate_hz: samples a second.
        speed: 0.25 to 4; 1 gives the samples back as they are.

    Returns:
        float32 [round(T / speed)], the same for the same arguments.

    Raises:
        InputError: another shape or speed.
    """
    check_speed(speed)
    wave = np.asarray(samples, dtype=np.float32)
    if wave.ndim != 1:
        raise InputError(f"samples must have shape [T], got {list(wave.shape)}")
    if speed == 1:
        return wave
    hop, search = round(_HOP_S * sample_rate_hz), round(_SEARCH_S * sample_rate_hz)
    size = 2 * hop
    window = np.hanning(size + 1)[:-1].astype(np.float32)  # two of them, a hop apart: 1
    n_out = round(len(wave) / speed)
    n_frames = -(-n_out // hop) + 1  # the first begins a hop before the output
    # Silence on both sides, as much as the frames and their search may reach over the edges.
    before, after = search + hop, search + 2 * size + round(hop * speed)
    padded = np.pad(wave, (before, after))
    norms = _norms(padded, size)
    out = np.zeros((n_frames + 1) * hop, dtype=np.float32)
    start = search  # of the first frame, which is at its place
    for i in range(n_frames):
        if i > 0:
            low = round((i - 1) * hop * speed) + before - search
            start = _most_alike(padded, norms, start + hop, low, 2 * search + 1, size)
        out[i * hop : i * hop + size] += window * padded[start : start + size]
    return out[hop : hop + n_out]


def _most_alike(
    padded: FloatArray, norms: FloatArray, following: int, low: int, n_places: int, size: int
) -> int:
    """Return which of the frames that begin at `low`, `low + 1`, ... is most like the one that
    begins at `following`, by the cosine between them; in silence the one in the middle."""
    wanted = padded[following : following + size]
    if not wanted.any():
        return low + n_places // 2
    products = np.correlate(padded[low : low + n_places - 1 + size], wanted)
    return low + int(np.argmax(products / norms[low : low + n_places]))


def _norms(padded: FloatArray, size: int) -> FloatArray:
    """Return the norm of each frame of `padded`, or a little if it is silent."""
    energies = np.cumsum(np.pad(padded.astype(np.float64) ** 2, (1, 0)))
    squared = np.maximum(energies[size:] - energies[:-size], 1e-12)
    return np.sqrt(squared).astype(np.float32)
