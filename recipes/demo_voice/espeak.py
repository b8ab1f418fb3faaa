"""Speech from espeak-ng, with the times of its phonemes. Debian's package is all that it needs."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import resample_poly

SAMPLE_RATE_HZ = 24_000
_WORDS_A_MINUTE = 175


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng: its name there, its pitch (0 to 99) and how much the pitch moves."""

    name: str
    voice: str
    pitch: int
    pitch_range: int = 30


# The first is the one whose sound defines the semantic units.
SPEAKERS = (
    Speaker("en_speaker_0", "en-us", 45),
    Speaker("en_speaker_1", "en-us+m7", 25),
    Speaker("en_speaker_2", "en-us+m3", 70),
    Speaker("en_speaker_3", "en-us+f2", 45),
    Speaker("en_speaker_4", "en-us+f5", 75),
    Speaker("en_speaker_5", "en-us+f4", 30),
)


class _Event(ctypes.Structure):  # espeak_EVENT of espeak-ng/speak_lib.h
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_END_OF_LIST, _PHONEME = 0, 7
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Espeak:
    """One synthesiser a process (the library has one state)."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise RuntimeError("the library espeak-ng is missing (Debian: apt install espeak-ng)")
        self._library: Any = ctypes.CDLL(name)
        self._rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 400, None, _PHONEME_EVENTS)
        self._callback = _CALLBACK(self._take)
        self._library.espeak_SetSynthCallback(self._callback)
        self._samples: list[np.ndarray] = []
        self._times: list[tuple[float, bytes]] = []

    def _take(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self._samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
        i = 0
        while events[i].type != _END_OF_LIST:
            if events[i].type == _PHONEME:
                self._times.append((events[i].sample / self._rate_hz, events[i].id))
            i += 1
        return 0

    def say(self, text: str, speaker: Speaker) -> tuple[np.ndarray, list[tuple[float, bytes]]]:
        """Samples float32 [T] at 24 kHz, and (start in seconds, name) of each phoneme."""
        self._samples, self._times = [], []
        lib = self._library
        if lib.espeak_SetVoiceByName(speaker.voice.encode()):
            raise RuntimeError(f"espeak-ng has no voice {speaker.voice}")
        lib.espeak_SetParameter(_RATE, _WORDS_A_MINUTE, 0)
        lib.espeak_SetParameter(_PITCH, speaker.pitch, 0)
        lib.espeak_SetParameter(_RANGE, speaker.pitch_range, 0)
        data = text.encode()
        lib.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        lib.espeak_Synchronize()
        wave = np.concatenate([*self._samples, np.zeros(0, np.int16)]).astype(np.float32) / 32768
        resampled = resample_poly(wave, SAMPLE_RATE_HZ // 150, self._rate_hz // 150)
        return resampled.astype(np.float32), self._times
