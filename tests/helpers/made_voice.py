"""A demo voice that takes seconds to make: tones instead of a teacher, two steps of training."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from recipes.demo_voice import features
from recipes.demo_voice.coarse import train_coarse
from recipes.demo_voice.codec import train_codec
from recipes.demo_voice.data import make_acoustic, make_books, make_semantic, make_words
from recipes.demo_voice.export import export
from recipes.demo_voice.fine import train_fine
from recipes.demo_voice.fit import Plan
from recipes.demo_voice.semantic import train_semantic
from recipes.demo_voice.teacher import HOP, Speaker, Spoken, Teacher

TEXTS = [f"{a} dog and {b} cats" for a in ("One", "A big", "No") for b in ("two", "ten", "no")]


LETTERS = string.ascii_lowercase + " "


def tone(hz: float, seconds: float = 0.5, phase: float = 0.0) -> features.Array:
    """Harmonics of `hz`, whose fundamental is a cosine with this phase at time 0."""
    t = np.arange(int(seconds * 24_000)) / 24_000
    turns = 2 * np.pi * hz * t + phase
    wave = sum(0.3 / k * np.cos(k * turns) for k in range(1, 5))
    return np.asarray(wave, dtype=np.float32)


class MadeUp(Teacher):
    """In place of hibari: a letter is a loudness for three frames, a speaker a pitch."""

    def __init__(self) -> None:
        self.space = 27

    def phonemes(self, text: str) -> np.ndarray:
        letters = [self.space if c == " " else ord(c) - 96 for c in text.lower() if c in LETTERS]
        frames = np.repeat(letters, 3)
        return np.append(frames, [0] * (2 - len(frames) % 2))

    def say(self, text: str, speaker: Speaker, seed: int = 0) -> Spoken:
        frames = self.phonemes(text)
        hz = np.full(len(frames), 190 * speaker.pitch, np.float32)
        loudness = np.repeat(0.3 + frames / 40, HOP).astype(np.float32)
        wave = tone(190 * speaker.pitch, (len(frames) * HOP + 0.5) / 24_000) * loudness
        return Spoken(frames, wave, hz, (hz * np.arange(len(hz)) * 0.1).astype(np.float32))


class Serial:
    """A pool of this process alone."""

    def imap(self, function, jobs, chunk):  # type: ignore[no-untyped-def]
        return map(function, jobs)


@dataclass(frozen=True)
class Made:
    """Folders."""

    data: Path
    models: Path
    checkpoint: Path


def make(folder: Path, patch: pytest.MonkeyPatch) -> Made:
    patch.setattr("recipes.demo_voice.data._teacher", MadeUp())
    patch.setattr("recipes.demo_voice.data._books", None)
    patch.setattr("recipes.demo_voice.data._FOR_BOOKS", 6)
    patch.setattr("recipes.demo_voice.data._UNITS", folder / "none")
    patch.setattr("recipes.demo_voice.export._PRESET_UNITS", (8, 160))
    for name in ("semantic", "coarse"):
        patch.setattr(f"recipes.demo_voice.{name}.POSITIONS_A_BATCH", 600)
    patch.setattr("recipes.demo_voice.codec._PIECES", 1)
    made = Made(folder / "data", folder / "models", folder / "checkpoint")
    made.data.mkdir(parents=True)
    made.models.mkdir()
    pool = Serial()
    make_books(made.data, TEXTS * 20, pool, 0)
    make_words(made.data)
    make_semantic(made.data, TEXTS, pool, 0)
    make_semantic(made.data, TEXTS[:2], pool, -1)
    make_acoustic(made.data, TEXTS, pool, 0, 36)
    plan = Plan(2, 1e-3)
    for train in (train_semantic, train_coarse, train_fine, train_codec):
        train(made.data, made.models, plan, 0)
    export(made.data, made.models, made.checkpoint)
    return made
