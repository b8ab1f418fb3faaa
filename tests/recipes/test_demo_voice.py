"""The demo voice's recipe: its layouts are the engine's own, and every step of it runs."""

from __future__ import annotations

import json
import random
import shutil
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
from helpers.made_voice import TEXTS, Made, tone
from recipes.demo_voice import data, features, tokens
from recipes.demo_voice.clock import CLOCK_SIZE, Look, start_with_clock
from recipes.demo_voice.coarse import coarse_ids, coarse_window
from recipes.demo_voice.codec import trained_fine
from recipes.demo_voice.common import Sentences, mistake
from recipes.demo_voice.data import Units, known_units, learn_units
from recipes.demo_voice.export import (
    check_data,
    config_json,
    export,
    generation_config_json,
    start_from,
)
from recipes.demo_voice.fine import completed, train_fine
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.muon import orthogonal
from recipes.demo_voice.network import Shape, Transformer
from recipes.demo_voice.quantize import k_means, nearest, residual_codes, residual_k_means
from recipes.demo_voice.semantic import tokens_said
from recipes.demo_voice.teacher import HOP, SPEAKERS, pitch_of_frames
from recipes.demo_voice.texts import Grammar, Mixture, held_out, make_texts, plain

CONFIG = parse_config(config_json(), generation_config_json())
RULES: SemanticRules = CONFIG.semantic_rules


@pytest.mark.parametrize("hz", [75.0, 91.3, 121.0, 174.5, 258.0, 380.0])
def test_pitch_of_a_tone(hz: float) -> None:
    np.testing.assert_allclose(features.pitch(tone(hz, phase=0.7))[3:-3], hz, rtol=0.01)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    assert (features.pitch(noise)[2:-2] == 0).mean() > 0.95
    assert (features.pitch(np.zeros(24_000, np.float32)) == 0).all()
    assert len(features.pitch(noise[:100])) == 0


@pytest.mark.parametrize("tract", [0.8, 1.0, 1.1])
def test_pitch_and_phase_of_the_teachers_pulses(tract: float) -> None:
    """A steady pitch, played at another speed: known at every frame's middle."""
    own = np.concatenate([np.zeros(10), np.full(90, 150.0), np.zeros(20)]).astype(np.float32)
    n = int(len(own) / 2 / tract)
    hz, phase = pitch_of_frames(own, n, tract)
    voiced = slice(int(6 / tract) + 1, int(49 / tract) - 1)
    np.testing.assert_allclose(hz[voiced], 150 * tract, rtol=1e-4)
    assert (hz[: int(4 / tract)] == 0).all()
    turn = 2 * np.pi * 150 * tract * HOP / 24_000
    steps = np.angle(np.exp(1j * (np.diff(phase[voiced]) - turn)))
    assert np.abs(steps).max() < 1e-2


def test_pitch_codes_say_what_they_stand_for() -> None:
    hz = np.array([70.0, 120.0, 250.0, 0.0], np.float32)
    phase = np.array([0.0, 1.5, -2.0, 0.0], np.float32)
    codes = features.pitch_codes(hz, phase)
    vectors = features.pitch_vectors()[torch.from_numpy(codes)]
    assert vectors[:, 0].tolist() == [1, 1, 1, 0]
    low, high = np.log(features.PITCH_HZ)
    place = (np.log(hz[:3]) - low) / (high - low) * 2 - 1
    assert np.abs(vectors[:3, 1].numpy() - place).max() <= 1.01 / features.N_PITCHES
    # The cosines and sines of an odd number of moments: the one in the middle is the phase.
    n = features.N_PITCH_DIMENSIONS // 2 - 1
    angle = torch.atan2(vectors[:3, 2 + n + n // 2], vectors[:3, 2 + n // 2]).numpy()
    assert np.abs(np.angle(np.exp(1j * (angle - phase[:3])))).max() <= 1.01 * np.pi / 20
    assert features.N_PITCH_CODES <= tokens.CODEBOOK


def test_unseen_phonemes_find_a_unit() -> None:
    pairs = learn_units([np.array([5, 5, 5, 6, 6, 6]), np.array([5, 6, 5, 6])])
    units = Units(pairs)
    names = pairs.tolist()
    assert [names[i] for i in units(np.array([5, 5, 5, 6, 6, 5]))] == [[5, 5], [5, 6], [5, 5]]
    assert names[units(np.array([9, 6]))[0]] == [6, 6]
    assert names[units(np.array([9, 9]))[0]] == [0, 0]


def test_the_grammar_makes_sentences() -> None:
    grammar = Grammar("sentence: {a thing} and {statement}\nthing: apple | dog\nstatement: it")
    made = {grammar.make(random.Random(i)) for i in range(20)}
    assert made == {"An apple and it", "A dog and it"}


def test_no_held_out_sentence_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    everyday, digits = held_out()
    assert len(everyday) == len({plain(t) for t in everyday}) == 100
    monkeypatch.setattr("recipes.demo_voice.texts.examples", lambda: [*everyday[:5], "A dog"])
    monkeypatch.setattr("recipes.demo_voice.texts.words_by_use", lambda: ["dog", "cat"])
    made = make_texts(0, Mixture(grammar=800, words=200))
    assert made == make_texts(0, Mixture(grammar=800, words=200))
    assert not {plain(t) for t in made} & {plain(t) for t in [*everyday, *digits]}
    assert len(made) > 700
    for text in [*made, *everyday, *digits]:
        ids = tokens.text_ids(text)
        assert tokens.UNKNOWN not in ids
        assert len(ids) <= tokens.PROMPT


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
        "An unknown sign € and strengths, 100%.",
        "Dogs, unhappily: antidisestablishmentarianism",
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
        return rng.integers(tokens.N_UNITS, size=n), rng.integers(1024, size=(8, n * 2))

    past_units, past_codes = spoken(n_past_units)
    units, codes = spoken(n_units)
    shifted = past_codes[:2, [*range(1, 2 * n_past_units), -1]] if n_past_units else past_codes
    voice = Voice(past_units, shifted, past_codes) if n_past_units else None
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


def test_heads_look_where_they_are_told_to() -> None:
    shape = Shape(2, 256, 60, 32)
    body = Transformer(shape, causal=True)
    times = torch.cat([torch.arange(20) * 0.1, torch.arange(40) * 0.05])
    streams = torch.tensor([1] * 20 + [-1] * 40)
    start_with_clock(body, times, streams, [(), (Look(0.2, 1), Look(-0.1, -1))])
    x = torch.randn(1, 60, 256) * 0.7
    x[..., :CLOCK_SIZE] = 0
    with torch.no_grad():
        _, query, key = body(x, watched=1)
    for head, at in ((0, 10 + 2), (1, 20 + 20 - 2)):  # from 1 s on
        scores = query[0, head, 40] @ key[0, head].T / 32**0.5
        assert scores[:41].softmax(0).argmax() == at
        assert scores[:41].softmax(0)[at] > 0.8


def test_units_know_their_words() -> None:
    words = {w: tokens.text_ids(w)[0] for w in ("the", "dog", "don", "t", "'", ".")}
    text = np.array([words[w] for w in ("the", "don", "'", "t", "dog", ".")])
    #                    the            don't          dog
    phonemes = np.array([1, 1, 2, 2, 9, 3, 3, 4, 4, 5, 9, 6, 6, 6])
    found = tokens_said(text, phonemes, 9)
    assert found is not None
    assert found.tolist() == [[0, 0, 1, 3, 3, 4, 4, 5], [1, 1, 4, 4, 4, 5, 5, 5]]
    assert tokens_said(text[:4], phonemes, 9) is None  # a word is missing
    spelled = np.array(tokens.text_ids("qzx"))
    found = tokens_said(spelled, np.array([1, 1, 2, 2, 3, 3]), 9)
    assert found is not None
    assert found[0].tolist() == [0, 1, 2, 2]


def test_the_fine_model_completes_codes(made: Made) -> None:
    fine = trained_fine(made.models)
    assert fine is not None
    codes = torch.from_numpy(Sentences(made.data).codes[0].astype(np.int64))
    own = completed(fine, codes)
    assert own.shape == codes.shape
    assert torch.equal(own[:2], codes[:2])
    assert own.min() >= 0
    assert own.max() < tokens.CODEBOOK
    assert trained_fine(made.data) is None


def test_mistakes_are_tokens_of_the_batch() -> None:
    given = torch.arange(4000).view(4, 1000)
    given[:, 900:] = -100
    before = given.clone()
    mistake(given, np.random.default_rng(0), 0.5)
    assert 0.05 < (given != before).float().mean() < 0.5
    assert (given[:, 900:] == -100).all()
    assert set(given.flatten().tolist()) <= set(before.flatten().tolist())


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_muons_steps_have_singular_values_near_1(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)))
    assert 0.6 < values.min() < values.max() < 1.3


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

    def train(folder: Path, stop_at: int | None, steps: int = 60) -> torch.Tensor:
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

        fit("line", model, batches, loss_of, Plan(steps, 0.05), folder)
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
    seen.clear()
    train(tmp_path / "b", None, steps=70)  # a longer plan goes on
    assert seen == list(range(60, 70))


def test_training_goes_on_from_a_checkpoint(made: Made, tmp_path: Path) -> None:
    start_from(made.checkpoint, tmp_path)
    for name in ("semantic", "coarse", "fine", "codec"):
        ours = torch.load(made.models / f"{name}.pt", weights_only=True)
        theirs = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-6)
    train_fine(made.data, tmp_path, Plan(1, 1e-9), 0)
    trained = torch.load(tmp_path / "fine.pt", weights_only=True)
    ours = torch.load(made.models / "fine.pt", weights_only=True)
    torch.testing.assert_close(trained["embeddings"], ours["embeddings"], rtol=1e-3, atol=1e-6)
    start_from(made.checkpoint, tmp_path)  # what is there stays
    again = torch.load(tmp_path / "fine.pt", weights_only=True)
    assert torch.equal(trained["embeddings"], again["embeddings"])


def test_training_knows_what_went_before(made: Made, tmp_path: Path) -> None:
    """Steps and minutes are counted on, and other batches are learned from."""
    before = {"training": {"fine": {"parameters": 1, "steps": 40, "minutes": 3.0}}}
    start, models = tmp_path / "start", tmp_path / "models"
    shutil.copytree(made.checkpoint, start)
    (start / "evaluation.json").write_text(json.dumps(before))
    models.mkdir()
    start_from(start, models)
    skipped: list[int] = []

    def batches(skip: int) -> Iterator[int]:
        skipped.append(skip)
        yield from range(100)

    model = Line()
    torch.save(model.state_dict(), models / "fine.pt")
    loss = torch.zeros((), requires_grad=True)
    for steps in (2, 5):
        fit(
            "fine", model, batches, lambda _: (model.blocks.weight.sum() * loss, {}),
            Plan(steps, 0.1), models,
        )  # fmt: skip
        report = json.loads((models / "fine.json").read_text())
        assert report["steps"] == 40 + steps
        assert report["minutes"] >= 3
    assert skipped == [40, 42]


def test_other_data_are_refused(made: Made, tmp_path: Path) -> None:
    check_data(made.data, made.checkpoint, codes=True)
    other = tmp_path / "data"
    shutil.copytree(made.data, other)
    codes = np.load(other / "codes.npy")
    np.save(other / "codes.npy", (codes + 1) % tokens.CODEBOOK)
    check_data(other, made.checkpoint, codes=False)
    with pytest.raises(ValueError, match=r"fine_prompt 0%, 0%, 0%, 0% are the same"):
        check_data(other, made.checkpoint, codes=True)


def test_the_voices_of_a_start_stay(made: Made, tmp_path: Path) -> None:
    start, folder = tmp_path / "start", tmp_path / "new"
    shutil.copytree(made.checkpoint, start)
    voice = start / "speaker_embeddings" / f"v2/{SPEAKERS[1].name}_semantic_prompt.npy"
    np.save(voice, np.arange(50))
    export(made.data, made.models, folder, start=start)
    assert Bark.from_pretrained(folder, device="cpu").voices == list(made_voices())
    kept = np.load(folder / voice.relative_to(start))
    assert kept.tolist() == list(range(50))


def made_voices() -> Iterator[str]:
    yield from (f"v2/{speaker.name}" for speaker in SPEAKERS)


def test_the_units_are_written_down() -> None:
    units = known_units(Path(data.__file__).with_name("units.txt"))
    assert units.shape == (tokens.N_UNITS, 2)
    assert Units(units)(units.numpy().ravel()).max() < tokens.N_UNITS


def test_the_whole_recipe_makes_a_checkpoint_that_speaks(made: Made) -> None:
    sentences = Sentences(made.data)
    for i in range(len(sentences.units)):
        assert sentences.codes[i].shape[1] == 2 * len(sentences.units[i])
        # A unit stands for a sound, whoever makes it.
        assert sentences.units[i].tolist() == sentences.units[i % len(TEXTS)].tolist()
    bark = Bark.from_pretrained(made.checkpoint, device="cpu")
    assert bark.voices == [f"v2/{speaker.name}" for speaker in SPEAKERS]
    speech = bark.generate(
        "Two dogs.", voice=bark.voices[3], params=GenerationParams(max_semantic_tokens=20, seed=0)
    )
    assert np.abs(speech.samples).max() > 0
    codes, _ = build_codes(speech.coarse_tokens, None, CONFIG)
    assert codes.shape == (tokens.FINE_WINDOW, tokens.N_CODEBOOKS)
