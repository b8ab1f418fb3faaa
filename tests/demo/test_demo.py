"""The demo voice that ships: it is Bark to transformers too, it speaks, and it ends.

Here the engine runs on real distributions: what these tests ask of batches, streams and precision
random weights cannot show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bark_fast import Bark, BarkModel, BarkProcessor, GenerationParams
from bark_fast.demo import FOLDER
from helpers.joining import joinable
from recipes.demo_voice import tokens
from recipes.demo_voice.card import judged
from recipes.demo_voice.evaluate import agreement, median_pitch_hz
from recipes.demo_voice.hearing import Moonshine, error_rate
from recipes.demo_voice.texts import held_out

SENTENCES = (
    "Hello, my dog is cute.",
    "How are you today?",
    "The weather is nice.",
    "She sold the old car to her neighbor.",
    "We will meet again tomorrow morning.",
    "He opened the door and looked out.",
)


@pytest.fixture(scope="module")
def bark() -> Bark:
    return Bark.from_pretrained("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "evaluation.json").read_text())
    return found


@pytest.fixture
def quiet() -> Iterator[None]:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the codec's encoder does not ship
    yield
    transformers.logging.set_verbosity(verbosity)


def test_it_is_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 32 * 2**20


def test_transformers_loads_it_and_says_the_same(quiet: None, bark: Bark) -> None:
    theirs = transformers.BarkModel.from_pretrained(FOLDER)
    processor = transformers.AutoProcessor.from_pretrained(FOLDER)
    voice = bark.voices[3]
    inputs = processor("Hello, my dog is cute.", voice_preset=voice)
    torch.manual_seed(0)
    expected = theirs.generate(**inputs, do_sample=False, fine_temperature=None, min_eos_p=0.2)
    speech = bark.generate(
        "Hello, my dog is cute.", voice=voice, params=GenerationParams(temperature=0)
    )
    assert speech.finish_reason == "end"
    np.testing.assert_allclose(speech.samples, expected[0].numpy(), atol=1e-5)


def test_the_face_of_transformers_takes_it_too(quiet: None) -> None:
    model = BarkModel.from_pretrained(FOLDER)
    inputs = BarkProcessor.from_pretrained(FOLDER)(
        ["Hello.", "Goodbye."], voice_preset=["v2/en_speaker_0", "v2/en_speaker_3"]
    )
    audio, lengths = model.generate(
        **inputs, do_sample=True, fine_temperature=0.5, min_eos_p=0.2, seed=1,
        return_output_lengths=True,
    )  # fmt: skip
    assert audio.shape == (2, max(lengths))
    assert all(2_000 < n < 60_000 for n in lengths)


def test_sentences_end_by_themselves_and_last_as_long_as_they_should(bark: Bark) -> None:
    params = [GenerationParams(seed=i) for i in range(len(SENTENCES))]
    said = bark.generate(SENTENCES, voice=bark.voices[0], params=params)
    assert [speech.finish_reason for speech in said] == ["end"] * len(said)
    for text, speech in zip(SENTENCES, said, strict=True):
        letters = sum(c.isalpha() for c in text)
        assert 0.035 * letters < speech.duration_s < 0.12 * letters


def test_voices_have_their_pitch(bark: Bark, evaluation: dict[str, Any]) -> None:
    assert len(bark.voices) >= 4
    texts = list(SENTENCES[:4])
    for voice in bark.voices:
        params = [GenerationParams(seed=i) for i in range(len(texts))]
        said = bark.generate(texts, voice=voice, params=params)
        hz = float(np.median([median_pitch_hz(speech.samples) for speech in said]))
        original = evaluation["pitch_hz"][voice.removeprefix("v2/")]["teacher"]
        assert abs(hz / original - 1) < 0.1, voice


def test_the_semantic_tokens_carry_words_and_not_the_voice(bark: Bark) -> None:
    greedy = GenerationParams(temperature=0)
    low, high = (
        bark.semantic(SENTENCES, voice=voice, params=greedy)
        for voice in (bark.voices[1], bark.voices[3])
    )
    same = np.mean([agreement(a.tolist(), b.tolist()) for a, b in zip(low, high, strict=True)])
    other = np.mean([agreement(low[i].tolist(), high[i - 1].tolist()) for i in range(len(low))])
    assert same > 2 * other


def test_together_as_alone(bark: Bark) -> None:
    params = [GenerationParams(seed=i) for i in range(len(SENTENCES))]
    voices = [*bark.voices, bark.voices[1], None]
    together = bark.generate(SENTENCES, voice=voices, params=params)
    for text, voice, own, speech in zip(SENTENCES, voices, params, together, strict=True):
        alone = bark.generate(text, voice=voice, params=own)
        np.testing.assert_array_equal(alone.semantic_tokens, speech.semantic_tokens)
        np.testing.assert_array_equal(alone.fine_tokens, speech.fine_tokens)


def test_a_stream_says_what_its_sentences_say(bark: Bark) -> None:
    text = " ".join(SENTENCES[:3])
    voice = bark.voices[2]
    parts = list(bark.stream(text, voice=voice, params=GenerationParams(seed=5)))
    assert len(parts) == 3
    whole = [
        bark.generate(sentence, voice=voice, params=GenerationParams(seed=5 + i))
        for i, sentence in enumerate(SENTENCES[:3])
    ]
    for part, expected in zip(parts, joinable(whole), strict=True):
        np.testing.assert_array_equal(part.samples, expected.samples)


def test_long_text_keeps_one_voice(bark: Bark) -> None:
    """Without a voice the first sentence's own goes on."""
    parts = list(bark.stream(" ".join(SENTENCES), params=GenerationParams(seed=3)))
    hz = [median_pitch_hz(part.samples) for part in parts]
    assert max(hz) / min(hz) < 1.25


def test_min_eos_p_ends_early_and_0_waits_for_the_end_token(bark: Bark) -> None:
    text = SENTENCES[0]

    def spoken(p: float) -> int:
        params = [GenerationParams(seed=i, min_eos_p=p) for i in range(4)]
        return sum(map(len, bark.semantic([text] * 4, voice=bark.voices[0], params=params)))

    # The model is sure of where the end is: elsewhere its probability is this small.
    assert spoken(1e-7) <= spoken(0.2) <= spoken(0.0)
    assert spoken(1e-7) < spoken(0.0)


def test_half_precision_writes_nearly_the_same_units(bark: Bark) -> None:
    lower = Bark.from_pretrained("demo", device="cpu", dtype="bfloat16")
    greedy = GenerationParams(temperature=0)
    voice = bark.voices[0]
    exact = bark.semantic(SENTENCES, voice=voice, params=greedy)
    other = lower.semantic(SENTENCES, voice=voice, params=greedy)
    shares = [agreement(a.tolist(), b.tolist()) for a, b in zip(exact, other, strict=True)]
    assert np.mean(shares) > 0.85


def test_its_words_are_heard(bark: Bark, evaluation: dict[str, Any]) -> None:
    """A short form of the evaluation."""
    pytest.importorskip("moonshine_voice")
    ear = Moonshine()
    texts = held_out()[0][:12]
    params = [GenerationParams(seed=i) for i in range(len(texts))]
    said = bark.generate(texts, voice=bark.voices[0], params=params)
    heard = [ear.hear(speech.samples) for speech in said]
    expected = evaluation["everyday"]["en_speaker_0"]["word_error_rate"]
    assert error_rate(texts, heard) < expected + 0.1
    assert error_rate([*texts[1:], texts[0]], heard) > 0.7


def test_the_card_says_what_was_measured(evaluation: dict[str, Any]) -> None:
    card = (FOLDER / "README.md").read_text()
    for rows in (evaluation["everyday"], evaluation["digits and names"]):
        assert judged(rows) in card
    for name, hz in evaluation["pitch_hz"].items():
        assert f"| {name} | {hz['teacher']:.0f} | {hz['demo']:.0f} |" in card
    for name, factor in evaluation["real_time_factor"].items():
        assert f"| {name} | {factor:.2f} |" in card


def test_the_tokenizer_is_the_recipes(bark: Bark) -> None:
    vocabulary = (FOLDER / "vocab.txt").read_text().split("\n")[:-1]
    assert tuple(vocabulary) == tokens.VOCABULARY
    assert bark.requests.tokenizer.encode("It's 42!") == tokens.text_ids("It's 42!")
