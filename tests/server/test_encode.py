"""Responses in every format, streamed and whole, decoded by another program than wrote them."""

from __future__ import annotations

import io
import os
import struct
import sys
import wave

import numpy as np
import pytest
from scipy.signal import correlate, resample_poly

from bark_fast import AudioWriter, InputError
from bark_fast.audio import save_audio
from bark_fast.server.encode import CONTENT_TYPES, HELD_BACK_S, SpeechEncoder, check_format
from helpers.decoding import aac_length, decode

RATE = 24_000
KINDS = list(CONTENT_TYPES)
MP3_FRAME, MP3_DELAY = 576, 1105  # LAME's 576 and a decoder's 529
EXACT = ("wav", "pcm", "flac")
CORRELATION = {"mp3": 0.995, "aac": 0.995, "opus": 0.99}
ODD = [1, 0, 7 * RATE, 3, 0, 1151, 2 * RATE + 17, 1]


def voice(n: int) -> np.ndarray:
    """Return float32 [n]: a harmonic sound that glides, in syllables, with a little noise."""
    rng = np.random.default_rng(0)
    t = np.arange(n) / RATE
    phase = 2 * np.pi * np.cumsum(150 + 40 * np.sin(2 * np.pi * 0.6 * t)) / RATE
    tones = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 16))
    sound = tones * (0.6 + 0.4 * np.sin(2 * np.pi * 3.3 * t)) + 0.02 * rng.standard_normal(n)
    return (0.2 * sound).astype(np.float32)


def encoded(kind: str, samples: np.ndarray, sizes: list[int], *, streamed: bool) -> bytes:
    """Return a response that was fed in pieces of such sizes."""
    assert sum(sizes) == len(samples)
    encoder = SpeechEncoder(kind, RATE, streamed=streamed)
    given = [encoder.feed(piece) for piece in np.split(samples, np.cumsum(sizes)[:-1])]
    assert streamed or not any(given)
    given.append(encoder.finish())
    encoder.close()
    return b"".join(given)


def heard(content: bytes, kind: str) -> np.ndarray:
    """Return what a listener has of a response, or of its beginning, float32 [T] at 24 kHz."""
    if kind == "pcm":
        whole = content[: len(content) // 2 * 2]
        return (np.frombuffer(whole, "<i2") / 2**15).astype(np.float32)
    samples, rate = decode(content)
    if kind == "opus":  # all decoders give it at 48 kHz
        assert rate == 2 * RATE
        return resample_poly(samples, 1, 2)
    assert rate == RATE
    return samples


def delay(kind: str, *, streamed: bool) -> int:
    """Return how many samples come before the sound, because the format cannot say it."""
    return 1024 if kind == "aac" else MP3_DELAY if kind == "mp3" and streamed else 0


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_another_program_hears_what_was_said(kind: str, streamed: bool) -> None:
    samples = voice(sum(ODD))
    got = heard(encoded(kind, samples, ODD, streamed=streamed), kind)
    before = delay(kind, streamed=streamed)
    if kind == "aac":
        assert len(got) == aac_length(len(samples))
    elif before:  # whole frames
        assert len(got) % MP3_FRAME == 0
        assert 0 <= len(got) - len(samples) - before < 2 * MP3_FRAME
    else:
        assert len(got) == len(samples)
    part = slice(RATE, 3 * RATE)
    lags = correlate(got[: 4 * RATE], samples[part], mode="valid")
    assert int(np.argmax(lags)) == part.start + before
    got = got[before:][: len(samples)]
    if kind in EXACT:
        np.testing.assert_allclose(got, samples, rtol=0, atol=2**-15)
    else:
        for start in range(0, len(samples) - RATE, RATE // 2):  # everywhere
            window = slice(start, start + RATE)
            assert np.corrcoef(got[window], samples[window])[0, 1] > CORRELATION[kind]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_do_not_matter(kind: str, streamed: bool) -> None:
    samples = voice(sum(ODD))
    pieces = encoded(kind, samples, ODD, streamed=streamed)
    assert pieces == encoded(kind, samples, [len(samples)], streamed=streamed)


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_is_whole_is_the_file(kind: str) -> None:
    """But for the fields of headers that tell the length, and MP3's frame that does."""
    samples = voice(3 * RATE + 5)
    sizes = [RATE, RATE, RATE + 5]
    streamed = encoded(kind, samples, sizes, streamed=True)
    whole = encoded(kind, samples, sizes, streamed=False)
    save_audio(file := io.BytesIO(), samples, RATE, format=kind)
    assert whole == file.getvalue()
    if kind == "wav":
        assert struct.unpack("<4sI", streamed[:8]) == (b"RIFF", 0xFFFFFFFF)
        assert streamed[8:40] == whole[8:40]
        assert struct.unpack("<I", streamed[40:44]) == (0xFFFFFFFF,)
        assert streamed[44:] == whole[44:]
    elif kind == "flac":
        assert streamed[:12] == whole[:12]
        assert streamed[42:] == whole[42:]
    elif kind == "mp3":
        first = len(whole) - len(streamed)
        assert 0 < whole.index(b"Info") < first
        assert streamed == whole[first:]
    else:
        assert streamed == whole


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_is_what_a_pipe_gets(kind: str) -> None:
    samples = voice(RATE)
    reading, writing = os.pipe()
    with open(reading, "rb") as ours, open(writing, "wb") as theirs:
        with AudioWriter(theirs, RATE, format=kind) as writer:
            writer.write(samples)
        theirs.close()
        assert ours.read() == encoded(kind, samples, [RATE], streamed=True)


def test_headers_of_whole_responses_are_true() -> None:
    n = 2 * RATE + 3
    contents = {kind: encoded(kind, voice(n), [n], streamed=False) for kind in KINDS}
    with wave.open(io.BytesIO(contents["wav"])) as file:
        assert file.getparams()[:4] == (1, 2, RATE, n)
    assert struct.unpack_from("<I", contents["wav"], 4)[0] == len(contents["wav"]) - 8
    assert int.from_bytes(contents["flac"][21:26], "big") & (2**36 - 1) == n
    at = contents["mp3"].index(b"Info")
    flags, n_frames, n_bytes = struct.unpack_from(">III", contents["mp3"], at + 4)
    assert flags & 3 == 3
    assert n_bytes == len(contents["mp3"])
    padding = int.from_bytes(contents["mp3"][at + 141 : at + 144], "big")  # 12 bits at each end
    assert n_frames * MP3_FRAME - (padding >> 12) - (padding & 0xFFF) == n


def test_mp3_has_a_constant_bit_rate() -> None:
    """Without it players take a stream's length from its first frames, and are wrong."""
    quiet_then_loud = voice(4 * RATE) * np.repeat([0, 0.01, 0.1, 1], RATE).astype(np.float32)
    content = encoded("mp3", quiet_then_loud, [4 * RATE], streamed=True)
    start, rates = 0, set()
    while start < len(content):
        header = struct.unpack_from(">I", content, start)[0]
        assert header >> 19 == 0b1111_1111_1111_0  # MPEG 2, which has half of MPEG 1's rates
        rate = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160][header >> 12 & 15]
        rates.add(rate)
        start += 72 * rate * 1000 // RATE + (header >> 9 & 1)
    assert start == len(content)
    assert rates == {64}


@pytest.mark.parametrize("size", [RATE, RATE // 3, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_little_is_held_back(kind: str, size: int) -> None:
    """After each piece nearly all of what was fed can be heard; what can't is in the table."""
    samples = voice(4 * RATE)
    encoder = SpeechEncoder(kind, RATE, streamed=True)
    content = b""
    for end in range(size, len(samples), size):
        content += encoder.feed(samples[end - size : end])
        got = heard(content, kind) if content else np.zeros(0)
        n_heard = len(got) - delay(kind, streamed=True)
        assert end - n_heard <= HELD_BACK_S[kind] * RATE
        window = slice(n_heard // 2, n_heard)
        before = delay(kind, streamed=True)
        likeness = np.corrcoef(got[before:][window], samples[window])[0, 1]
        assert likeness > 0.98
    encoder.close()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_next_to_nothing(kind: str, streamed: bool) -> None:
    for n in (0, 1):
        content = encoded(kind, voice(n), [n], streamed=streamed)
        if kind in EXACT and (n or kind == "pcm"):
            assert len(heard(content, kind)) == n
        elif kind == "wav":
            assert content[36:40] == b"data"
            assert len(content) == 44
        else:
            assert len(heard(content, kind)) <= (n or 1) + 3 * 1024


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors there")
@pytest.mark.parametrize("kind", KINDS)
def test_close_frees_whatever_came_before(kind: str) -> None:
    check_format(kind, RATE)  # imports what it needs
    before = len(os.listdir("/proc/self/fd"))
    for streamed in (True, False):
        for n_pieces in range(3):
            encoder = SpeechEncoder(kind, RATE, streamed=streamed)
            for _ in range(n_pieces):
                encoder.feed(voice(1000))
            encoder.close()
            encoder.close()
            with pytest.raises(InputError, match="open AudioWriter"):
                encoder.feed(voice(10))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("kind", "rate_hz", "message"),
    [
        ("ogg", RATE, "response_format must be one of mp3, opus, aac, flac, wav, pcm, got 'ogg'"),
        ("MP3", RATE, "response_format must be one of mp3, .*, got 'MP3'"),
        ("", RATE, "response_format must be one of mp3, .*, got ''"),
        ("pcm", 22_050, "response_format must be one for 22050 Hz, got 'pcm', which is 24000 Hz"),
        ("opus", 22_050, "format must be one for 22050 Hz, got 'opus': .*Opus"),
        ("mp3", 12_345, "format must be one for 12345 Hz, got 'mp3'"),
        ("aac", 12_345, "format must be one for 12345 Hz, got 'aac'"),
    ],
)
def test_formats_that_cannot_be(kind: str, rate_hz: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_format(kind, rate_hz)
    with pytest.raises(InputError, match=message):
        SpeechEncoder(kind, rate_hz, streamed=True)


def test_rates_that_can_be() -> None:
    for rate_hz in (8000, 12_000, 16_000, 24_000, 48_000):
        for kind in set(KINDS) - {"pcm"}:
            check_format(kind, rate_hz)


def test_aac_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'bark-fast\[aac\]'\), got 'aac'"):
        check_format("aac", RATE)
    for kind in set(KINDS) - {"aac"}:
        check_format(kind, RATE)
