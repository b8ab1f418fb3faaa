"""Features that the tokens are made of: the envelope of the spectrum, the pitch and its phase."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.demo_voice.teacher import HOP, SAMPLE_RATE_HZ

Array = NDArray[np.float32]

PITCH_HZ = (65.0, 400.0)
N_PITCHES, N_PHASES = 51, 20  # with "no pitch" they fit one codebook of 1 024
N_CEPSTRA = 28  # of each half frame
_N_MEL = 64
_FFT = 1024
_ENVELOPE_WINDOW = 600  # samples
_DIFFERENCE_WEIGHT, _LOUDNESS_WEIGHT = 0.7, 0.6
_PITCH_HOP = 320
_PITCH_WINDOW = 1200  # samples: three periods of the lowest pitch, and a bit
_VOICED = 0.55  # of the power must repeat a period later


def _mel_filters() -> Array:
    """Triangles [n_mel, _FFT // 2 + 1], equally spaced on the mel scale (O'Shaughnessy 1987)."""
    top = 2595 * np.log10(1 + 11_000 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _N_MEL + 2) / 2595) - 1)
    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, _FFT // 2 + 1)
    up = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(up, down))
    return (filters / filters.sum(1, keepdims=True)).astype(np.float32)


def _cosines(n: int, m: int) -> Array:
    """The orthonormal DCT-II, [n, m]."""
    k, i = np.arange(n)[:, None], np.arange(m)
    basis = np.cos(np.pi * k * (i + 0.5) / m) * np.sqrt(2 / m)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


_MEL, _DCT = _mel_filters(), _cosines(N_CEPSTRA, _N_MEL)


def _windows(samples: Array, centres: NDArray[np.int64], length: int) -> Array:
    """[n, length] samples around each centre, zeros beyond the ends."""
    padded = np.pad(samples, length)
    starts = centres - length // 2 + length
    return padded[starts[:, None] + np.arange(length)]


def cepstra(samples: Array, centres: NDArray[np.int64], window: int) -> Array:
    """Mel cepstra [n, N_CEPSTRA] of the samples around each centre: the shape of the spectrum,
    too coarse to show single harmonics."""
    frames = _windows(samples, centres, window) * np.hanning(window).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2
    level = np.log(np.maximum(power.astype(np.float32) @ _MEL.T, 1e-6))
    result: Array = level @ _DCT.T
    return result


def envelope(samples: Array, n_frames: int) -> Array:
    """[n_frames, 2 * N_CEPSTRA]: mean and difference of the cepstra of each frame's halves, less
    of what is heard less."""
    centres = np.arange(2 * n_frames) * (HOP // 2) + HOP // 4
    halves = cepstra(samples, centres, _ENVELOPE_WINDOW).reshape(n_frames, 2, N_CEPSTRA)
    mean, difference = halves.mean(1), (halves[:, 1] - halves[:, 0]) / 2
    mean[:, 0] *= _LOUDNESS_WEIGHT
    return np.concatenate([mean, difference * _DIFFERENCE_WEIGHT], 1)


def pitch(samples: Array) -> Array:
    """Pitch in Hz 75 times a second, 0 where there is none: the lag at which the signal repeats
    best. For speech of which nothing else is known."""
    n_frames = len(samples) // _PITCH_HOP
    if not n_frames:
        return np.zeros(0, np.float32)
    centres = np.arange(n_frames) * _PITCH_HOP + _PITCH_HOP // 2
    x = _windows(samples, centres, _PITCH_WINDOW)
    x = x - x.mean(1, keepdims=True)
    window = np.hanning(_PITCH_WINDOW).astype(np.float32)
    size = 4096
    spectrum = np.fft.rfft(x * window, size)
    # Boersma 1993: the autocorrelation of what is heard, over that of the window.
    repeats = np.fft.irfft(np.abs(spectrum) ** 2, size)
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2, size)
    low, high = (int(SAMPLE_RATE_HZ / hz) for hz in reversed(PITCH_HZ))
    lags = np.arange(low, high + 1)
    power = np.maximum(repeats[:, :1], 1e-9)
    score = (repeats / power)[:, lags] / (of_window / of_window[0])[lags]
    rows = np.arange(n_frames)
    loud = np.sqrt((x**2).mean(1)) > 0.004
    # Every multiple of the period repeats as well: the shortest is meant.
    score = score - 0.03 * np.log2(lags / low)
    best = score.argmax(1)
    voiced = (score[rows, best] > _VOICED) & loud
    if voiced.any():  # a voice keeps to its range, but a weak or rough frame may look otherwise
        middle = np.median(lags[best[voiced]])
        score[:, (lags < 0.6 * middle) | (lags > 1.7 * middle)] = 0
        best = score.argmax(1)
    voiced = (score[rows, best] > _VOICED) & loud
    return np.where(voiced, SAMPLE_RATE_HZ / lags[best], 0.0).astype(np.float32)


N_PITCH_CODES = N_PITCHES * N_PHASES + 1
NO_PITCH = N_PITCHES * N_PHASES
_LOG_PITCH = np.log(PITCH_HZ)


def pitch_codes(hz: Array, phase: Array) -> NDArray[np.int64]:
    """One code for pitch and phase together, [n_frames]."""
    place = (np.log(np.maximum(hz, 1.0)) - _LOG_PITCH[0]) / (_LOG_PITCH[1] - _LOG_PITCH[0])
    which = np.clip((place * N_PITCHES).astype(np.int64), 0, N_PITCHES - 1)
    turn = np.round(phase / (2 * np.pi) * N_PHASES).astype(np.int64) % N_PHASES
    return np.where(hz > 0, which * N_PHASES + turn, NO_PITCH)


N_PITCH_DIMENSIONS = 40


def pitch_vectors() -> torch.Tensor:
    """Return the meaning of each pitch code, float32 [1024, N_PITCH_DIMENSIONS].

    Columns are voiced, pitch (-1 .. 1), and the fundamental's cosine and sine at moments of the
    frame; codes that do not occur are silent.
    """
    vectors = torch.zeros(1024, N_PITCH_DIMENSIONS)
    code = torch.arange(NO_PITCH)
    place = (code // N_PHASES + 0.5) / N_PITCHES
    hz = torch.exp(float(_LOG_PITCH[0]) + place * float(_LOG_PITCH[1] - _LOG_PITCH[0]))
    moments = torch.linspace(-0.5, 0.5, N_PITCH_DIMENSIONS // 2 - 1) * HOP / SAMPLE_RATE_HZ
    phase = 2 * torch.pi * (code % N_PHASES) / N_PHASES
    angle = phase[:, None] + 2 * torch.pi * hz[:, None] * moments
    vectors[:NO_PITCH] = torch.cat(
        [torch.ones(NO_PITCH, 1), 2 * place[:, None] - 1, angle.cos(), angle.sin()], 1
    )
    return vectors
