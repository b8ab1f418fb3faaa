"""Measures the demo voice on sentences that it was not trained on.

Words by a recogniser (pocketsphinx), lengths and pitches against espeak-ng's, agreement of the
semantic tokens between voices, precision, and speed.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bark_fast import Bark, BarkModel, GenerationParams, Speech
from recipes.demo_voice import features
from recipes.demo_voice.data import codes_of
from recipes.demo_voice.espeak import SPEAKERS, Espeak
from recipes.demo_voice.words import Recogniser, words_of

_N_SENTENCES, _LEAST_WORDS = 50, 3
_LENGTH_TOLERANCE = 0.25


def median_pitch_hz(samples: features.Array) -> float:
    hz, _ = features.pitch(samples, len(samples) // features.HOP)
    return float(np.median(hz[hz > 0])) if (hz > 0).any() else 0.0


@dataclass(frozen=True)
class Material:
    """Sentences, whose voice each has, and espeak-ng's waves of them."""

    sentences: list[str]
    speakers: list[int]
    originals: list[features.Array]

    @property
    def voices(self) -> list[str]:
        return [f"v2/{SPEAKERS[s].name}" for s in self.speakers]

    @classmethod
    def of(cls, held_out: Sequence[str]) -> Material:
        espeak = Espeak()
        texts = [t for t in held_out if len(t.split()) >= _LEAST_WORDS][:_N_SENTENCES]
        speakers = [i % len(SPEAKERS) for i in range(len(texts))]
        waves = [espeak.say(t, SPEAKERS[s])[0] for t, s in zip(texts, speakers, strict=True)]
        return cls(texts, speakers, waves)


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of the tokens that two sequences have in common, in order."""
    matcher = SequenceMatcher(None, list(first), list(second), autojunk=False)
    same = sum(block.size for block in matcher.get_matching_blocks())
    return 2 * same / max(1, len(first) + len(second))


def evaluate(
    texts: Sequence[str], held_out: Sequence[str], data: Path, checkpoint: Path, *, seed: int
) -> dict[str, Any]:
    """All figures, by name.

    Args:
        texts: what was trained on, for the recogniser's language model.
        held_out: sentences that were not; `_N_SENTENCES` of them are said.
    """
    recogniser = Recogniser(texts)
    material = Material.of([t for t in held_out if recogniser.knows(t)])
    said = material.sentences
    params = [GenerationParams(seed=seed + i) for i in range(len(said))]
    made: dict[str, list[Speech]] = {}
    for dtype in ("float32", "bfloat16", "int8"):
        bark = Bark.from_pretrained(checkpoint, dtype=dtype)
        made[dtype] = bark.generate(said, voice=material.voices, params=params, progress=True)
    bark = Bark.from_pretrained(checkpoint, dtype="float32")
    speeches = made["float32"]
    waves = [speech.samples for speech in speeches]
    errors = {
        "espeak-ng": material.originals,
        "its codes through the codec": round_trip(data, checkpoint, material.originals),
        **{dtype: [speech.samples for speech in own] for dtype, own in made.items()},
    }
    ratios = [len(w) / len(o) for w, o in zip(waves, material.originals, strict=True)]
    return {
        "sentences": len(said),
        "words": sum(len(words_of(t)) for t in said),
        "word_error_rate": {name: recogniser.error_rate(said, own) for name, own in errors.items()},
        "length": {
            "within a quarter of espeak-ng's": float(
                np.mean([abs(r - 1) <= _LENGTH_TOLERANCE for r in ratios])
            ),
            "median ratio": float(np.median(ratios)),
            "ended by itself": float(np.mean([s.finish_reason == "end" for s in speeches])),
        },
        "pitch_hz": {
            speaker.name: {
                "espeak-ng": _median_pitch_of(number, material, material.originals),
                "demo": _median_pitch_of(number, material, waves),
            }
            for number, speaker in enumerate(SPEAKERS)
        },
        "same_units": voices_agree(bark, material),
        "real_time_factor": speed(bark, material),
        "machine": describe(),
    }


def _median_pitch_of(speaker: int, material: Material, waves: Sequence[features.Array]) -> float:
    own = [w for w, s in zip(waves, material.speakers, strict=True) if s == speaker]
    return float(np.median([median_pitch_hz(wave) for wave in own]))


def describe() -> dict[str, Any]:
    """Describe the machine on which speed is measured."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


def round_trip(
    data: Path, checkpoint: Path, waves: Sequence[features.Array]
) -> list[features.Array]:
    """Decode the originals' own codes."""
    codec = BarkModel.from_pretrained(checkpoint)
    with torch.no_grad():
        return [
            codec.codec_decode(torch.from_numpy(codes_of(data, w).astype(np.int64))[None])[
                0
            ].numpy()
            for w in waves
        ]


def voices_agree(bark: Bark, material: Material) -> dict[str, float]:
    """Measure how far semantic tokens agree, of one sentence in two voices and of two sentences."""
    texts = material.sentences[:20]
    both = [
        bark.generate(
            texts,
            voice=f"v2/{SPEAKERS[s].name}",
            params=GenerationParams(temperature=0.0),
        )
        for s in (1, 4)
    ]
    units: list[list[list[int]]] = [[s.semantic_tokens.tolist() for s in own] for own in both]
    pairs = list(zip(*units, strict=True))
    return {
        "same sentence, two voices": float(np.mean([agreement(a, b) for a, b in pairs])),
        "two sentences": float(
            np.mean([agreement(units[0][i], units[1][i - 1]) for i in range(len(texts))])
        ),
    }


def speed(bark: Bark, material: Material, runs: int = 3) -> dict[str, float]:
    """Seconds of work for a second of audio, one request and sixteen; medians."""

    def factor(n: int) -> float:
        found = []
        for run in range(runs):
            start = time.perf_counter()
            said: list[Speech] = bark.generate(
                material.sentences[:n],
                voice=material.voices[:n],
                params=[GenerationParams(seed=run)] * n,
            )
            found.append((time.perf_counter() - start) / sum(s.duration_s for s in said))
        return float(np.median(found))

    return {"one request": factor(1), "sixteen": factor(16)}
