"""Measures the demo voice on sentences that it was not trained on.

What a recogniser hears and how it sounds, beside the teacher and the codec alone; lengths and
pitches against the teacher's; agreement of the semantic tokens between voices; speed.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bark_fast import Bark, BarkModel, GenerationParams, Speech
from recipes.demo_voice import features
from recipes.demo_voice.data import codes_of
from recipes.demo_voice.hearing import Moonshine, error_rate, naturalness, words_of
from recipes.demo_voice.teacher import SPEAKERS, Spoken, Teacher
from recipes.demo_voice.texts import held_out

_LENGTH_TOLERANCE = 0.25
VOICES = tuple(f"v2/{speaker.name}" for speaker in SPEAKERS)


def median_pitch_hz(samples: features.Array) -> float:
    hz = features.pitch(samples)
    return float(np.median(hz[hz > 0])) if (hz > 0).any() else 0.0


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of the tokens that two sequences have in common, in order."""
    matcher = SequenceMatcher(None, list(first), list(second), autojunk=False)
    same = sum(block.size for block in matcher.get_matching_blocks())
    return 2 * same / max(1, len(first) + len(second))


@dataclass(frozen=True)
class Judge:
    """Words and sound, in one table's row."""

    ear: Moonshine

    def __call__(self, texts: Sequence[str], waves: Sequence[features.Array]) -> dict[str, float]:
        heard = [self.ear.hear(wave) for wave in waves]
        return {"word_error_rate": error_rate(texts, heard), "mos": naturalness(waves)}


CODEC_ALONE = "its codes through the codec"


def evaluate(
    data: Path, checkpoint: Path, *, seed: int, codec_alone: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """All figures, by name.

    Args:
        codec_alone: the row of CODEC_ALONE, if `data` has not the codebooks of this codec.
    """
    judge, teacher = Judge(Moonshine()), Teacher()
    texts, digits = held_out()
    spoken = [teacher.say(text, SPEAKERS[0]) for text in texts]
    originals = [s.samples for s in spoken]
    bark = Bark.from_pretrained(checkpoint, dtype="float32")

    def said(which: Sequence[str], voice: str) -> list[Speech]:
        params = [GenerationParams(seed=seed + i) for i in range(len(which))]
        return bark.generate(which, voice=voice, params=params, progress=True)

    by_voice = {voice: said(texts, voice) for voice in VOICES}
    waves = {voice: [s.samples for s in own] for voice, own in by_voice.items()}
    rows = {
        "the teacher": judge(texts, originals),
        CODEC_ALONE: codec_alone or judge(texts, round_trip(data, checkpoint, spoken)),
        **{voice.removeprefix("v2/"): judge(texts, own) for voice, own in waves.items()},
    }
    ratios = [len(w) / len(o) for w, o in zip(waves[VOICES[0]], originals, strict=True)]
    every = [speech for own in by_voice.values() for speech in own]
    return {
        "sentences": len(texts),
        "words": sum(len(words_of(t)) for t in texts),
        "sentences with digits": len(digits),
        "everyday": rows,
        "digits and names": {
            "the teacher": judge(digits, [teacher.say(t, SPEAKERS[0]).samples for t in digits]),
            SPEAKERS[0].name: judge(digits, [s.samples for s in said(digits, VOICES[0])]),
        },
        "length": {
            "within a quarter of the teacher's": float(
                np.mean([abs(r - 1) <= _LENGTH_TOLERANCE for r in ratios])
            ),
            "median ratio": float(np.median(ratios)),
            "ended by itself": float(np.mean([s.finish_reason == "end" for s in every])),
        },
        "pitch_hz": {
            speaker.name: {
                "teacher": _pitch([teacher.say(t, speaker).samples for t in texts[:20]]),
                "demo": _pitch(waves[f"v2/{speaker.name}"][:20]),
            }
            for speaker in SPEAKERS
        },
        "same_units": voices_agree(bark, texts),
        "real_time_factor": speed(bark, texts),
        "machine": describe(),
    }


def _pitch(waves: Sequence[features.Array]) -> float:
    return float(np.median([median_pitch_hz(wave) for wave in waves]))


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


def round_trip(data: Path, checkpoint: Path, spoken: Sequence[Spoken]) -> list[features.Array]:
    """Decode the originals' own codes."""
    codec = BarkModel.from_pretrained(checkpoint)
    with torch.no_grad():
        return [
            codec.codec_decode(torch.from_numpy(codes_of(data, s).astype(np.int64))[None])[
                0
            ].numpy()
            for s in spoken
        ]


def voices_agree(bark: Bark, texts: Sequence[str]) -> dict[str, float]:
    """Measure how far semantic tokens agree, of one sentence in two voices and of two sentences."""
    greedy = GenerationParams(temperature=0.0)
    both = [bark.semantic(texts[:20], voice=voice, params=greedy) for voice in VOICES[:2]]
    units = [[own.tolist() for own in one] for one in both]
    pairs = list(zip(*units, strict=True))
    return {
        "same sentence, two voices": float(np.mean([agreement(a, b) for a, b in pairs])),
        "two sentences": float(
            np.mean([agreement(units[0][i], units[1][i - 1]) for i in range(len(pairs))])
        ),
    }


def speed(bark: Bark, texts: Sequence[str], runs: int = 3) -> dict[str, float]:
    """Measure seconds of work for a second of audio, one request and sixteen; medians."""

    def factor(n: int) -> float:
        found = []
        for run in range(runs):
            start = time.perf_counter()
            params = GenerationParams(seed=run)
            said: list[Speech] = bark.generate(texts[:n], voice=VOICES[0], params=params)
            found.append((time.perf_counter() - start) / sum(s.duration_s for s in said))
        return float(np.median(found))

    return {"one request": factor(1), "sixteen": factor(16)}


def temperatures(checkpoint: Path, *, seed: int) -> dict[str, dict[str, float]]:
    """Judge other temperatures (semantic, coarse, fine) on half of the sentences."""
    judge = Judge(Moonshine())
    texts = held_out()[0][::2]
    bark = Bark.from_pretrained(checkpoint, dtype="float32")
    found = {}
    for three in (
        (0.7, 0.7, 0.5),
        (0.5, 0.5, 0.2),
        (0.3, 0.4, 0.2),
        (0.4, 0.3, 0.2),
        (0.2, 0.3, 0.2),
    ):
        params = [
            GenerationParams(
                semantic_temperature=three[0],
                coarse_temperature=three[1],
                fine_temperature=three[2],
                seed=seed + i,
            )
            for i in range(len(texts))
        ]
        said = bark.generate(texts, voice=VOICES[0], params=params)
        found[" / ".join(map(str, three))] = judge(texts, [s.samples for s in said])
    return found
