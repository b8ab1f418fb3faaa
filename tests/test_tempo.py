"""Speech faster and slower: its length, its pitch, no clicks, its words."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bark_fast import Bark, GenerationParams, InputError
from bark_fast.tempo import change_tempo
from recipes.demo_voice.hearing import Moonshine, error_rate

RATE = 24_000
SPEEDS = [0.25, 0.5, 0.7, 0.95, 1.05, 1.5, 2, 4]
SENTENCES = [
    "The train to the north leaves at seven in the morning.",
    "She bought some bread and a bottle of milk.",
    "We walked along the river until it was dark.",
    "Please close the window before you leave the house.",
    "My brother works in a small shop near the station.",
    "The children played in the garden all afternoon.",
]


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    """Float32 [T] of each sentence, twice, in the demo voice."""
    params = [GenerationParams(seed=seed) for seed in range(2 * len(SENTENCES))]
    speeches = Bark.from_pretrained("demo", device="cpu").generate(SENTENCES * 2, params=params)
    assert speeches[0].sample_rate_hz == RATE
    return [speech.samples for speech in speeches]


def sine(frequency_hz: float, duration_s: float = 2.0, rate_hz: int = RATE) -> np.ndarray:
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * t)).astype(np.float32)


def pitch_hz(samples: np.ndarray, centre: float, low_hz: float = 70, high_hz: float = 400) -> float:
    """Return the pitch of the 50 ms around `centre`: the peak of their autocorrelation, with a
    parabola through it; 0 where they are not voiced."""
    size = RATE // 20
    start = round(centre) - size // 2
    if start < 0 or start + size > len(samples):
        return 0.0
    frame = samples[start : start + size].astype(np.float64)
    if np.sqrt(np.mean(frame**2)) < 0.1 * np.abs(samples).max():
        return 0.0
    shortest, longest = int(RATE / high_hz), int(RATE / low_hz)
    products = np.fft.irfft(np.abs(np.fft.rfft(frame, 2 * size)) ** 2)[: longest + 2]
    products /= products[0] * (1 - np.arange(longest + 2) / size)
    lag = shortest + int(np.argmax(products[shortest : longest + 1]))
    if products[lag] < 0.8 or not shortest < lag < longest:
        return 0.0
    before, peak, after = products[lag - 1 : lag + 2]
    return float(RATE / (lag + 0.5 * (before - after) / (before - 2 * peak + after)))


@pytest.mark.parametrize("speed", SPEEDS)
def test_length(speed: float) -> None:
    for n in (0, 1, 7, 299, 600, 24_000, 100_003):
        assert len(change_tempo(np.ones(n, np.float32), RATE, speed)) == round(n / speed)


@pytest.mark.parametrize("speed", [1, 1.0])
def test_at_1_nothing_changes(speed: float) -> None:
    samples = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert change_tempo(samples, RATE, speed).tobytes() == samples.tobytes()


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_same_again(speed: float, spoken: list[np.ndarray]) -> None:
    before = spoken[0].copy()
    once, again = (change_tempo(spoken[0], RATE, speed) for _ in range(2))
    assert once.dtype == np.float32
    assert once.tobytes() == again.tobytes()
    np.testing.assert_array_equal(spoken[0], before)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("frequency_hz", [85, 123.4, 220, 1000, 5000])
def test_a_sine_stays_a_sine(frequency_hz: float, speed: float) -> None:
    """Its frequency to 0.1 %, and 99.9 % of its energy within 20 Hz of it: clicks would be a wide
    spectrum."""
    made = change_tempo(sine(frequency_hz, 4), RATE, speed)
    middle = made[len(made) // 8 : -len(made) // 8].astype(np.float64)
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 2**20)) ** 2
    hz = np.arange(len(power)) * RATE / 2**20
    assert hz[np.argmax(power)] == pytest.approx(frequency_hz, rel=1e-3)
    near = np.abs(hz - frequency_hz) < 20
    assert power[near].sum() / power.sum() > 0.999
    assert np.abs(middle).max() < 0.51


@pytest.mark.parametrize("speed", [0.5, 0.7, 1.5, 2])
def test_speech_keeps_its_pitch(speed: float, spoken: list[np.ndarray]) -> None:
    """To 1 % on average over the sentences, to 1.5 % in each: the median over its voiced moments,
    each compared with the moment of the original that it comes from."""
    medians = []
    for samples in spoken:
        made, changes = change_tempo(samples, RATE, speed), []
        for centre in range(0, len(samples), RATE // 100):
            before, after = pitch_hz(samples, centre), pitch_hz(made, centre / speed)
            if before and after:
                changes.append(after / before - 1)
        assert len(changes) > 30
        medians.append(np.median(changes))
    assert abs(np.mean(medians)) < 0.01
    assert np.abs(medians).max() < 0.015


@pytest.mark.parametrize("speed", SPEEDS)
def test_speech_gets_no_clicks(speed: float, spoken: list[np.ndarray]) -> None:
    """A click is a jump from one sample to the next: none is larger than those that were there."""
    for samples in spoken:
        made = change_tempo(samples, RATE, speed)
        assert np.abs(np.diff(made, 2)).max() <= 1.1 * np.abs(np.diff(samples, 2)).max()
        assert np.abs(made).max() <= 1.1 * np.abs(samples).max()


def test_what_comes_when() -> None:
    """A tone that rises does so at the new speed, everywhere within 25 ms."""
    steps = np.concatenate([sine(f, 0.3) for f in (200, 300, 450, 675, 1000)])
    for speed in (0.5, 1.5):
        made = change_tempo(steps, RATE, speed)
        for i, frequency_hz in enumerate((200, 300, 450, 675, 1000)):
            first, last = (round((t / speed) * RATE) for t in (0.3 * i, 0.3 * i + 0.3))
            part = made[first + 600 : last - 600]
            power = np.abs(np.fft.rfft(part * np.hanning(len(part)), 2**17))
            assert np.argmax(power) * RATE / 2**17 == pytest.approx(frequency_hz, rel=0.01)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100, 48_000])
def test_other_sample_rates(rate_hz: int) -> None:
    made = change_tempo(sine(200, 2, rate_hz), rate_hz, 1.3)
    power = np.abs(np.fft.rfft(made * np.hanning(len(made)), 2**19))
    assert np.argmax(power) * rate_hz / 2**19 == pytest.approx(200, rel=1e-3)


def test_silence_stays_silent() -> None:
    samples = np.concatenate([np.zeros(12_000), sine(200, 0.5), np.zeros(12_000)])
    for speed in SPEEDS:
        made = change_tempo(samples, RATE, speed)
        edge = int(0.4 * RATE / speed)
        assert not made[:edge].any()
        assert not made[-edge:].any()
        assert np.abs(made).max() > 0.45


def test_it_takes_little_time(spoken: list[np.ndarray]) -> None:
    """Less than 2 % of the time that the result lasts, in the best of three."""
    samples = np.concatenate(spoken[:4])
    for speed in (0.25, 0.7, 1.5, 4):
        spent = []
        for _ in range(3):
            start = time.thread_time()
            made = change_tempo(samples, RATE, speed)
            spent.append(time.thread_time() - start)
        assert min(spent) < 0.02 * len(made) / RATE


@pytest.mark.slow
def test_words_are_still_heard(spoken: list[np.ndarray]) -> None:
    ear = Moonshine()

    def rate(speed: float) -> float:
        heard = [ear.hear(change_tempo(samples, RATE, speed)) for samples in spoken]
        return error_rate(SENTENCES * 2, heard)

    plain = rate(1)
    assert plain < 0.3
    assert rate(0.7) < plain + 0.1
    assert rate(1.5) < plain + 0.1


@pytest.mark.parametrize("speed", [0.2, 4.1, 0, -1, float("nan"), float("inf"), "1.0", None, True])
def test_bad_speeds(speed: object) -> None:
    with pytest.raises(InputError, match=r"speed must be from 0\.25 to 4, got "):
        change_tempo(np.zeros(8, np.float32), RATE, speed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"samples must have shape \[T\], got \[1, 8\]"):
        change_tempo(np.zeros((1, 8), np.float32), RATE, 2)
