"""`bark-fast say`: AAC, the speed, and the bytes that a server's response has too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bark_fast import Bark, GenerationParams
from bark_fast.cli import main
from bark_fast.server.encode import SpeechEncoder
from bark_fast.tempo import change_tempo
from helpers.checkpoints import Checkpoint
from helpers.decoding import AAC_FRAME, aac_length, decode


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def say(checkpoint: Checkpoint, text: str, *arguments: str) -> int:
    quick = ["--device", "cpu", "--max-semantic-tokens", "20", "--temperature", "0"]
    return main(["say", text, "--model", str(checkpoint.folder), *quick, *arguments])


def samples(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_aac(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("Hello", "Hello. You."):
        assert say(small, text, "--seed", "5", "-o", "a.wav") == 0
        assert say(small, text, "--seed", "5", "-o", "a.aac") == 0
        heard, rate = decode(Path("a.aac").read_bytes())
        said = samples("a.wav")
        assert rate == 8000
        assert len(heard) == aac_length(len(said))
        heard = heard[AAC_FRAME:][: len(said)]
        assert np.sqrt(np.mean((heard - said) ** 2)) < 0.3 * np.sqrt(np.mean(said**2))


def test_aac_without_pyav(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bark, "from_pretrained", None)
    monkeypatch.setitem(sys.modules, "av", None)
    assert say(small, "Hello", "-o", "a.aac") == 2
    assert "pip install 'bark-fast[aac]'" in capsys.readouterr().err
    assert os.listdir() == []


def test_speed(small: Checkpoint) -> None:
    """Each part by itself, with the pause behind it, as a server says it."""
    text = "One two. Three four. Five."
    params = GenerationParams(temperature=0, max_semantic_tokens=20, seed=5)
    parts = list(small.bark.stream(text, params=params, pause_s=0.25))
    for speed in (0.5, 1.0, 1.7):
        arguments = ["--subtype", "FLOAT", "--seed", "5", "--speed", str(speed)]
        assert say(small, text, *arguments) == 0
        expected = [change_tempo(part.samples, 8000, speed) for part in parts]
        np.testing.assert_array_equal(samples("speech.wav"), np.concatenate(expected))
        length = sum(len(part.samples) for part in parts)
        assert len(samples("speech.wav")) == pytest.approx(length / speed, abs=2)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["-o", "-"], "wav"),
        (["-o", "-", "--format", "mp3", "--speed", "1.3"], "mp3"),
        (["-o", "-", "--format", "aac"], "aac"),
        (["-o", "-", "--format", "opus", "--speed", "0.8"], "opus"),
        (["-o", "-", "--format", "flac"], "flac"),
    ],
)
def test_a_response_of_the_server_has_the_same_bytes(
    small: Checkpoint, capfdbinary: pytest.CaptureFixture[bytes], options: list[str], kind: str
) -> None:
    text = "One two. Three four. Five."
    params = GenerationParams(temperature=0, max_semantic_tokens=20, seed=5)
    speed = float(options[5]) if "--speed" in options else 1.0
    encoders = [SpeechEncoder(kind, 8000, streamed=streamed) for streamed in (True, False)]
    responses = [b"", b""]
    for part in small.bark.stream(text, params=params, pause_s=0.25):
        made = change_tempo(part.samples, 8000, speed)
        for i, encoder in enumerate(encoders):
            responses[i] += encoder.feed(made)
    for i, encoder in enumerate(encoders):
        responses[i] += encoder.finish()
        encoder.close()
    assert say(small, text, "--seed", "5", "-q", *options) == 0
    assert say(small, text, "--seed", "5", "-q", *options[2:], "-o", f"a.{kind}") == 0
    whole = Path(f"a.{kind}").read_bytes()
    assert responses[1] == whole
    # Standard output is a file here, and gets its header at the end; test_encode.py has pipes.
    assert capfdbinary.readouterr().out in responses
    start = {"wav": 44, "flac": 42, "mp3": len(whole) - len(responses[0])}.get(kind, 0)
    begin = 0 if kind == "mp3" else start
    assert responses[0][begin:] == whole[start:]
