"""What judges the demo voice, and what is written about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from bark_fast import GenerationParams
from helpers.made_voice import TEXTS, Made, MadeUp
from recipes.demo_voice.card import judged, training_of, write_card
from recipes.demo_voice.data import sizes_of
from recipes.demo_voice.evaluate import agreement, evaluate, median_pitch_hz, temperatures
from recipes.demo_voice.hearing import error_rate, read_pieces, word_errors, words_of
from recipes.demo_voice.teacher import SPEAKERS


def test_words_are_compared_however_they_are_written() -> None:
    assert words_of("It's a well-known dog, isn’t it?") == [
        "it's", "a", "well", "known", "dog", "isn't", "it"
    ]  # fmt: skip
    assert words_of("At 7:45, $1,500 and 80%") == words_of(
        "At seven forty five, one thousand five hundred dollars and eighty percent."
    )
    assert words_of("Dr. Lee was born in 1998 on May 3rd, room 042.") == words_of(
        "Doctor Lee was born in nineteen ninety eight on May three, room zero four two."
    )


def test_word_errors() -> None:
    said = ["it's", "a", "dog", "isn't", "it"]
    assert word_errors(said, said) == 0
    assert word_errors(said, ["it's", "dog", "is", "it", "not"]) == 3
    assert word_errors(said, []) == 5
    assert error_rate(["A dog.", "Two cats run."], ["a dog", "Two hats run away"]) == 2 / 5


def test_the_recognisers_tokenizer_is_read() -> None:
    long = b"x" * 300
    data = bytes([2]) + b"ab" + bytes([0]) + bytes([300 % 128 + 128, 300 // 128]) + long
    assert read_pieces(data) == [b"ab", b"", long]


def test_agreement() -> None:
    assert agreement([1, 2, 3], [1, 2, 3]) == 1
    assert agreement([1, 2, 3, 4], [1, 9, 3, 4]) == 0.75
    assert agreement([], []) == 0


class Ear:
    """Hears every sentence but for its last word."""

    def __init__(self) -> None:
        self._left: list[str] = []

    def hear(self, samples: np.ndarray) -> str:
        self._left = self._left or list(TEXTS[:2])
        return self._left.pop(0).rpartition(" ")[0]


def mos(waves: Sequence[np.ndarray]) -> float:
    assert all(np.isfinite(wave).all() for wave in waves)
    return 3.21


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "recipes.demo_voice.evaluate"
    monkeypatch.setattr(f"{module}.Moonshine", Ear)
    monkeypatch.setattr(f"{module}.naturalness", mos)
    monkeypatch.setattr(f"{module}.Teacher", MadeUp)
    monkeypatch.setattr(f"{module}.held_out", lambda: (TEXTS[:2], TEXTS[:2]))
    # A voice that has hardly been trained does not end by itself.
    short = partial(GenerationParams, max_semantic_tokens=60)
    monkeypatch.setattr(f"{module}.GenerationParams", short)


def test_everything_is_measured_and_written_down(made: Made, judges: None) -> None:
    figures = evaluate(made.data, made.checkpoint, seed=0)
    rows = figures["everyday"]
    names = [speaker.name for speaker in SPEAKERS]
    assert list(rows)[:6] == ["the teacher", "its codes through the codec", *names]
    words = sum(len(words_of(t)) for t in TEXTS[:2])
    assert all(row == {"word_error_rate": 2 / words, "mos": 3.21} for row in rows.values())
    assert set(figures["digits and names"]) == {"the teacher", names[0]}
    assert 0 <= figures["length"]["ended by itself"] <= 1
    for speaker in SPEAKERS:
        hz = figures["pitch_hz"][speaker.name]["teacher"]
        assert hz == pytest.approx(190 * speaker.pitch, rel=0.05)
    assert all(factor > 0 for factor in figures["real_time_factor"].values())
    json.dumps(figures)

    figures["training"] = training_of(made.models)
    figures["data"] = sizes_of(made.data)
    write_card(made.checkpoint, figures, seed=7)
    card = (made.checkpoint / "README.md").read_text()
    assert f"| the teacher | {200 / words:.1f} % | 3.21 |" in card
    assert "with seed 7" in card
    assert f"{len(TEXTS)} sentences" in card
    assert "{" not in card


def test_temperatures_are_compared(made: Made, judges: None) -> None:
    found = temperatures(made.checkpoint, seed=0)
    assert len(found) > 3
    assert all(row["mos"] == 3.21 for row in found.values())


def test_a_row_of_the_card() -> None:
    assert judged({"x": {"word_error_rate": 0.0512, "mos": 2.949}}) == "| x | 5.1 % | 2.95 |"


def test_the_pitch_of_silence_is_none() -> None:
    assert median_pitch_hz(np.zeros(24_000, np.float32)) == 0
