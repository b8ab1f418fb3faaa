"""Speech of hibari-tts, whose parts say more than its waves do: which phoneme lasts how long, and
where its pitch is. Other speakers are made of the same voice.

A speaker has a tract of another length when the wave is played slower or faster, and the teacher
speaks as much faster or slower before. The pitch that the teacher's filters are made for is set
inside its network, so that they fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

Array = NDArray[np.float32]

SAMPLE_RATE_HZ = 24_000
HOP = 600  # samples a frame: the teacher counts time in 25 ms
# Where hibari's network has the frames of each phoneme, and its pitch.
_DURATIONS, _PITCH = "/Cast_32_output_0", "f0"
_SPECTRUM = ("lh", "theta", "ln", "lr", "phi", "f0")
_LEAST_HZ = 40.0
_PAUSE_FRAMES = 4  # the silence before and after a sentence, at most
_LEVEL = 0.08  # root mean square of what sounds


@dataclass(frozen=True)
class Speaker:
    """How a voice differs from the teacher's: its pitch (200 Hz there), and the frequencies of its
    formants."""

    name: str
    pitch: float = 1.0
    tract: float = 1.0


# The first is the teacher itself.
SPEAKERS = (
    Speaker("en_speaker_0"),
    Speaker("en_speaker_1", pitch=0.58, tract=0.86),
    Speaker("en_speaker_2", pitch=1.27, tract=1.1),
    Speaker("en_speaker_3", pitch=0.47, tract=0.8),
)


@dataclass(frozen=True)
class Spoken:
    """A sentence of F frames.

    Attributes:
        phonemes: which is heard in each frame, int64 [F]; they are numbered as hibari has them.
        samples: float32 [F * HOP].
        hz: pitch, float32 [F]; 0 where there is none.
        phase: of the pulses at each frame's middle, in radians, float32 [F].
    """

    phonemes: NDArray[np.int64]
    samples: Array
    hz: Array
    phase: Array


def pitch_of_frames(own_hz: Array, n: int, tract: float) -> tuple[Array, Array]:
    """(hz, phase) of n frames, from the pitch that the pulses are made with (two values a frame of
    the teacher's own time)."""
    half = HOP // 2
    places = (np.arange(len(own_hz)) + 0.5) * half
    at_samples = np.interp(np.arange(len(own_hz) * half) + 0.5, places, own_hz)
    turns = np.cumsum(np.maximum(at_samples, _LEAST_HZ) / SAMPLE_RATE_HZ)
    middles = (np.arange(n) + 0.5) * HOP * tract
    phase = 2 * np.pi * (np.interp(middles, np.arange(len(turns)), turns) % 1)
    # Half a frame may be voiced: then it is that half's pitch.
    quarters = [np.interp(middles + d * half * tract, places, own_hz) for d in (-0.5, 0.5)]
    voiced = [(q > _LEAST_HZ * 1.5).astype(np.float32) for q in quarters]
    count = voiced[0] + voiced[1]
    hz = sum(q * v for q, v in zip(quarters, voiced, strict=True)) / np.maximum(count, 1)
    return (hz * tract).astype(np.float32), phase.astype(np.float32)


def _part(path: Path, outputs: tuple[str, ...]) -> Any:
    """A session of that part of hibari's network which makes `outputs`.

    What makes the speech takes the frames of each phoneme ("lasting") and a factor for the pitch.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph = model.graph
    if _DURATIONS in outputs:
        graph.output.append(helper.make_tensor_value_info(_DURATIONS, TensorProto.INT64, None))
    else:
        for node in graph.node:
            node.input[:] = ["lasting" if name == _DURATIONS else name for name in node.input]
            node.output[:] = ["own pitch" if name == _PITCH else name for name in node.output]
        places = [i for i, node in enumerate(graph.node) if "own pitch" in node.output]
        graph.node.insert(places[0] + 1, helper.make_node("Mul", ["own pitch", "factor"], [_PITCH]))
        graph.input.append(helper.make_tensor_value_info("lasting", TensorProto.INT64, ["L"]))
        graph.input.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1]))
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.insert(0, node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(kept)
    for values in (graph.input, graph.output, graph.initializer):
        wanted = needed if values is not graph.output else set(outputs)
        left = [value for value in values if value.name in wanted]
        del values[:]
        values.extend(left)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


class Teacher:
    """hibari's voice heart, one a process."""

    def __init__(self) -> None:
        from hibari import Hibari

        self._hibari = Hibari(threads=1)
        path = Path(self._hibari.model_path)
        self._timing, self._voice = _part(path, (_DURATIONS,)), _part(path, _SPECTRUM)
        self.n_phonemes = max(self._hibari.vocab.values()) + 1
        self.space: int = self._hibari.vocab[" "]

    def _timed(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(phonemes, how many frames each lasts)."""
        # Nothing of ours has two sentences, but an abbreviation may look like an end.
        ids = np.asarray(self._hibari.ids(" ".join(self._hibari.phonemize(text))), np.int64)
        feed = {"ids": ids[None], "speed": np.ones(1, np.float32)}
        lasting = self._timing.run([_DURATIONS], feed)[0].ravel()
        lasting[[0, -1]] = np.minimum(lasting[[0, -1]], _PAUSE_FRAMES)
        lasting[-1] += lasting.sum() % 2  # a unit is two frames
        return ids, lasting

    def phonemes(self, text: str) -> NDArray[np.int64]:
        """Those of each frame, without the speech."""
        return np.repeat(*self._timed(text))

    def say(self, text: str, speaker: Speaker, seed: int = 0) -> Spoken:
        from hibari import dsp

        ids, lasting = self._timed(text)
        ends = np.round(np.cumsum(lasting) * speaker.tract).astype(np.int64)
        feed = {
            "ids": ids[None],
            "lasting": np.maximum(np.diff(ends, prepend=0), 0),
            "factor": np.full(1, speaker.pitch / speaker.tract, np.float32),
        }
        spectrum = [part[0] for part in self._voice.run(list(_SPECTRUM), feed)]
        hz = np.where(spectrum[-1] > _LEAST_HZ, spectrum[-1], 0).astype(np.float32)
        samples = dsp.synth(*spectrum[:-1], hz, np.random.default_rng(seed))
        n = int(lasting.sum())
        pitch, phase = pitch_of_frames(hz, n, speaker.tract)
        if speaker.tract != 1:
            rate = Fraction(speaker.tract).limit_denominator(100)
            samples = resample_poly(samples, rate.denominator, rate.numerator).astype(np.float32)
        samples = np.pad(samples[: n * HOP], (0, max(0, n * HOP - len(samples))))
        loud = np.abs(samples) > 0.01
        level = np.sqrt((samples[loud] ** 2).mean()) if loud.any() else 1.0
        samples = (samples * (_LEVEL / level)).clip(-1, 1).astype(np.float32)
        return Spoken(np.repeat(ids, lasting), samples, pitch, phase)
