"""The demo voice's recipe: its layouts are the engine's own, and every step of it runs."""

from __future__ import annotations

import ctypes.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bark_fast import Bark, GenerationParams
from bark_fast.checkpoint.config import SemanticRules
from bark_fast.checkpoint.reading import parse_config
from bark_fast.stages.coarse import codes_to_ids, trim_voice, window_prompt, window_start
from bark_fast.stages.fine import build_codes
from bark_fast.stages.semantic import build_prompt
from bark_fast.types import Voice
from recipes.demo_voice import features, tokens
from recipes.demo_voice.codec import train_codec
from recipes.demo_voice.data import make_acoustic, make_books, make_semantic
from recipes.demo_voice.espeak import SPEAKERS, Espeak
from recipes.demo_voice.export import config_json, export, generation_config_json
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.language import (
    Spoken,
    coarse_ids,
    coarse_window,
    train_coarse,
    train_fine,
    train_semantic,
)
from recipes.demo_voice.quantize import k_means, nearest, residual_codes, residual_k_means
from recipes.demo_voice.texts import spell
from recipes.demo_voice.words import word_errors, words_of

CONFIG = parse_config(config_json(), generation_config_json())
RULES: SemanticRules = CONFIG.semantic_rules


def tone(hz: float, seconds: float = 0.5, phase: float = 0.0) -> features.Array:
    """Harmonics of `hz`, whose fundamental is a cosine with this phase at time 0."""
    t = np.arange(int(seconds * 24_000)) / 24_000
    turns = 2 * np.pi * hz * t + phase
    wave = sum(0.3 / k * np.cos(k * turns) for k in range(1, 5))
    return np.asarray(wave, dtype=np.float32)


@pytest.mark.parametrize("hz", [75.0, 91.3, 121.0, 174.5, 258.0, 380.0])
def test_pitch_and_phase_of_a_tone(hz: float) -> None:
    found, phase = features.pitch(tone(hz, phase=0.7), 37)
    inside = slice(3, -3)
    np.testing.assert_allclose(found[inside], hz, rtol=0.01)
    middles = (np.arange(37) * 320 + 160) / 24_000
    error = np.angle(np.exp(1j * (phase - (2 * np.pi * hz * middles + 0.7))))
    assert np.abs(error[inside]).max() < 0.2


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    hz, _ = features.pitch(noise, 70)
    assert (hz[2:-2] == 0).mean() > 0.95
    hz, phase = features.pitch(np.zeros(24_000, np.float32), 70)
    assert (features.pitch_codes(hz, phase) == features.NO_PITCH).all()


def test_pitch_codes_say_what_they_stand_for() -> None:
    hz = np.array([70.0, 120.0, 250.0, 0.0], np.float32)
    phase = np.array([0.0, 1.5, -2.0, 0.0], np.float32)
    codes = features.pitch_codes(hz, phase)
    vectors = features.pitch_vectors()[torch.from_numpy(codes)]
    assert vectors[:, 0].tolist() == [1, 1, 1, 0]
    angle = torch.atan2(vectors[:3, 3], vectors[:3, 2]).numpy()
    assert np.abs(np.angle(np.exp(1j * (angle - phase[:3])))).max() <= np.pi / features.N_PHASES
    low, high = np.log(features.PITCH_HZ)
    place = (np.log(hz[:3]) - low) / (high - low) * 2 - 1
    assert np.abs(vectors[:3, 1].numpy() - place).max() <= 1.01 / features.N_PITCHES
    assert features.N_PITCH_CODES <= tokens.CODEBOOK


def test_k_means_finds_clusters_and_leaves_none_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 5, generator=generator) * 20
    points = centres.repeat(50, 1) + torch.randn(400, 5, generator=generator) * 0.1
    found = k_means(points, 16, seed=1)
    assert (points - found[nearest(points, found)]).norm(dim=1).max() < 1.0
    assert torch.bincount(nearest(points, found), minlength=16).min() > 0


def test_each_residual_level_leaves_less() -> None:
    points = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    books = residual_k_means(points, 32, 4, seed=0)
    codes = residual_codes(points, books)
    left = [
        (points - sum(books[k][codes[:, k]] for k in range(level))).norm().item()
        for level in range(1, 5)
    ]
    assert left == sorted(left, reverse=True)
    assert left[3] < 0.5 * left[0]


def test_the_tokenizer_spells_as_the_recipe_does(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(tokens.VOCABULARY) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'
    )
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in (
        "Hello, my dog is cute!",
        "It's 42 o'clock; well-known: yes?",
        "An unknown sign % and a word.",
    ):
        assert tokens.text_ids(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_prompts_are_the_engines() -> None:
    rng = np.random.default_rng(0)
    for n_text, n_past in ((5, 0), (tokens.PROMPT + 9, 3), (30, 300)):
        ids = rng.integers(len(tokens.VOCABULARY), size=n_text).tolist()
        past = rng.integers(tokens.N_UNITS, size=n_past).tolist()
        text, history = build_prompt(ids, past, RULES)
        assert tokens.semantic_prompt(ids, past) == (text[:-1], history[:-1])
        assert text[-1] == tokens.SEMANTIC_INFER


@pytest.mark.parametrize("n_past_units", [0, 40, 41, 90, 200])
@pytest.mark.parametrize("n_units", [3, 61, 150])
def test_coarse_windows_are_the_engines(n_past_units: int, n_units: int) -> None:
    rng = np.random.default_rng(n_past_units * 1000 + n_units)

    def spoken(n: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(tokens.N_UNITS, size=n), rng.integers(1024, size=(8, n * 3 // 2))

    past_units, past_codes = spoken(n_past_units)
    units, codes = spoken(n_units)
    voice = Voice(past_units, past_codes[:2], past_codes) if n_past_units else None
    semantic_history, coarse_history = trim_voice(voice, CONFIG)
    ids = codes_to_ids(codes[:2], CONFIG)
    assert ids == coarse_ids(codes).tolist()
    for window in range(-(-len(ids) // tokens.COARSE_STEP)):
        drawn = window * tokens.COARSE_STEP
        start = window_start(drawn, len(semantic_history), CONFIG)
        prompt = window_prompt(
            [*semantic_history, *units.tolist()][start:], coarse_history + ids[:drawn], CONFIG
        )
        row, wanted = coarse_window(
            units, np.array(ids), past_units, coarse_ids(past_codes), window
        )
        assert row[: len(row) - wanted].tolist() == prompt
        assert row[len(row) - wanted :].tolist() == ids[drawn : drawn + tokens.COARSE_STEP]


def test_words() -> None:
    assert [spell(n) for n in (0, 21, 110, 999_999)] == [
        "zero",
        "twenty one",
        "one hundred and ten",
        "nine hundred and ninety nine thousand nine hundred and ninety nine",
    ]
    said = words_of("It's a dog, isn't it?")
    assert said == ["it's", "a", "dog", "isn't", "it"]
    assert word_errors(said, said) == 0
    assert word_errors(said, ["it's", "dog", "is", "it", "not"]) == 3


class Line(torch.nn.Module):
    """y = a x + b, which any optimiser finds."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Linear(1, 1)


def test_training_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.demo_voice.fit._SAVE_EVERY_S", 0.0)
    seen: list[int] = []

    def train(folder: Path, stop_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = Line()

        def batches(skip: int) -> Iterator[int]:
            yield from range(skip, 1000)

        def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == stop_at:
                raise KeyboardInterrupt
            seen.append(step)
            x = torch.full((4, 1), float(step % 7))
            loss = (model.blocks(x) - 3 * x - 1).square().mean()
            return loss, {"loss": loss.item()}

        fit("line", model, batches, loss_of, Plan(60, 0.05), folder)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = train(tmp_path / "a", None)
    assert seen == list(range(60))
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", 25)
    resumed = train(tmp_path / "b", None)
    assert seen == list(range(60))
    assert torch.equal(whole, resumed)
    assert torch.equal(train(tmp_path / "b", 0), whole)  # done: nothing is trained


class MadeUp(Espeak):
    """Tones in place of espeak-ng, which not every machine has: a letter is a tone, a speaker an
    octave and a length."""

    def __init__(self) -> None:
        pass

    def say(self, text: str, speaker: object) -> tuple[np.ndarray, list[tuple[float, bytes]]]:
        number = SPEAKERS.index(speaker)  # type: ignore[arg-type]
        length = 0.07 + 0.005 * number
        letters = [c for c in text.lower() if c.isalpha()]
        waves = [tone(90 + 20 * number, length) * (0.3 + (ord(c) - 97) / 40) for c in letters]
        times = [(i * length, c.encode()) for i, c in enumerate(letters)]
        return np.concatenate(waves), times


class Serial:
    """A pool of this process alone."""

    def imap(self, function, jobs, chunk):  # type: ignore[no-untyped-def]
        return map(function, jobs)


def test_the_whole_recipe_makes_a_checkpoint_that_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.demo_voice.data._espeak", MadeUp())
    monkeypatch.setattr("recipes.demo_voice.data._books", None)
    monkeypatch.setattr("recipes.demo_voice.export._PRESET_UNITS", (20, 384))
    monkeypatch.setattr("recipes.demo_voice.language._POSITIONS_A_BATCH", 600)
    monkeypatch.setattr("recipes.demo_voice.codec._PIECES", 1)
    data, models = tmp_path / "data", tmp_path / "models"
    data.mkdir()
    models.mkdir()
    texts = [f"{a} dog and {b} cats" for a in ("One", "A big", "No") for b in ("two", "ten", "no")]
    pool = Serial()
    make_books(data, texts * 2, pool, 0)
    make_semantic(data, texts, pool, 0)
    make_semantic(data, texts[:2], pool, -1)
    make_acoustic(data, texts, pool, 0, 36)

    spoken = Spoken(data)
    for i in range(len(spoken.units)):
        frames = spoken.codes[i].shape[1]
        assert abs(frames - 1.5 * len(spoken.units[i])) <= 2
    # A unit stands for a letter, whoever says it.
    heard: dict[int, set[str]] = {}
    right = []
    for i in np.argsort(spoken.speakers, kind="stable"):
        letters = [c for c in texts[i % len(texts)].lower() if c.isalpha()]
        units = spoken.units[i]
        at = (np.arange(len(units)) + 0.5) / len(units) * len(letters)
        for unit, place in zip(units.tolist(), at, strict=True):
            if abs(place % 1 - 0.5) < 0.25:  # the middle of a letter
                known = heard.setdefault(unit, set())
                if spoken.speakers[i] == 0:
                    known.add(letters[int(place)])
                elif known:
                    right.append(letters[int(place)] in known)
    assert len(right) > 50
    assert np.mean(right) > 0.9

    plan = Plan(2, 1e-3)
    train_semantic(data, models, plan, 0)
    train_coarse(data, models, plan, 0)
    train_fine(data, models, plan, 0)
    train_codec(data, models, plan, 0)
    export(data, models, tmp_path / "checkpoint")
    bark = Bark.from_pretrained(tmp_path / "checkpoint", device="cpu")
    assert bark.voices == [f"v2/{speaker.name}" for speaker in SPEAKERS]
    speech = bark.generate(
        "Two dogs.", voice=bark.voices[3], params=GenerationParams(max_semantic_tokens=20, seed=0)
    )
    assert np.abs(speech.samples).max() > 0
    codes, _ = build_codes(speech.coarse_tokens, None, CONFIG)
    assert codes.shape == (tokens.FINE_WINDOW, tokens.N_CODEBOOKS)


def test_a_machine_without_espeak_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match="espeak-ng is missing"):
        Espeak()
