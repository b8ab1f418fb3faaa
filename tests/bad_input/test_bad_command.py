"""A mistake on the command line is one line on standard error, and nothing is written."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from bark_fast.cli import main
from helpers.checkpoints import Checkpoint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["say"], "TEXT"),
        (["say", "Hi", "--loud"], "--loud"),
        (["say", "Hi", "--temp", "1"], "--temp"),  # no guessing of abbreviations
        (["say", ""], "TEXT must not be empty"),
        (["say", " \n"], "TEXT must not be empty"),
        (["say", "-"], "TEXT must not be empty"),
        (["say", "Hi \udcff"], "text must be valid Unicode"),
        (["say", "\u200b"], "text must hold something the tokenizer knows"),
        (["say", "Hi", "-o", "speech.mp4"], "--output must end in .wav, .flac, .mp3"),
        (["say", "Hi", "-o", "a.wav", "--format", "mp4"], "format must be one of wav, flac, mp3"),
        (["say", "Hi", "-o", "-", "--subtype", "OPUS"], "subtype must be one of PCM_16"),
        (["say", "Hi", "-o", "n" * 252 + ".wav"], "--output must be a file that can be written"),
        (["say", "Hi", "-o", "absent/a.wav"], "--output must be in a folder that exists"),
        (["say", "Hi", "--subtype", "PCM_8"], "subtype must be one of"),
        (["say", "Hi", "-o", "a.flac", "--subtype", "FLOAT"], "subtype must be one of"),
        (["say", "Hi", "--save-voice", "me.wav"], "--save-voice must end in .npz"),
        (["say", "Hi", "--save-voice", "absent/me.npz"], "--save-voice must be in a folder"),
        (["say", "Hi", "--pause", "-1"], "--pause must be from 0 to 60 seconds, got -1"),
        (["say", "Hi", "--pause", "nan"], "--pause must be from 0 to 60 seconds, got nan"),
        (["say", "Hi", "--speed", "0.2"], "--speed must be from 0.25 to 4, got 0.2"),
        (["say", "Hi", "--speed", "nan"], "--speed must be from 0.25 to 4, got nan"),
        (["say", "Hi", "--pause", "long"], "--pause: invalid float value: 'long'"),
        (["say", "Hi", "--temperature", "-1"], "temperature must be a finite number >= 0"),
        (["say", "Hi", "--temperature", "nan"], "temperature must be a finite number >= 0"),
        (["say", "Hi", "--coarse-top-k", "2.5"], "--coarse-top-k: invalid int value: '2.5'"),
        (["say", "Hi", "--top-p", "0"], "top_p must be a number above 0, at most 1, got 0.0"),
        (["say", "Hi", "--seed", "-1"], "seed must be an integer from 0 to 2**64 - 1, got -1"),
        (["say", "Hi", "--max-duration-s", "1e-6"], "max_duration_s must allow at least one"),
        (["say", "Hi", "--voice", "nobody"], "voice must be a preset of this checkpoint"),
        (["say", "Hi", "--voice", "absent.npz"], "voice must be a file that exists"),
        (["say", "Hi", "--language", "e n"], "language must be a code"),
        (["say", "Hi", "--device", "tpu"], "device must be"),
        (["say", "Hi", "--dtype", "int4"], "dtype must be"),
        (["say", "Hi", "-q", "--progress"], "not allowed with argument"),
        (["say", "Hi", "--model", "absent"], "model must be a folder that exists or a hub id"),
        (["say", "Hi", "--model", "empty"], "config.json is missing"),
        (["voices", "--model", "absent"], "model must be a folder that exists or a hub id"),
        (["voices", "--model", "empty"], "config.json is missing"),
        (["info", "more"], "unrecognized arguments: more"),
        (["new-checkpoint"], "DIR"),
        (["new-checkpoint", "full"], "folder must be new or empty, got 'full'"),
        (["new-checkpoint", "new", "--size", "huge"], "size must be one of"),
        (["new-checkpoint", "new", "--dtype", "int4"], "dtype must be one of"),
        (["new-checkpoint", "new", "--seed", "x"], "--seed: invalid int value: 'x'"),
        (["new-checkpoint", "new", "--seed", "-5"], "seed must be an integer from 0"),
    ],
    ids=lambda x: " ".join(x).encode("ascii", "replace").decode() if isinstance(x, list) else "",
)
def test_command(
    small: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    if arguments[:1] == ["say"] and "--model" not in arguments:
        arguments = [*arguments, "--model", str(small.folder)]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bark-fast: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_command_with_undecodable_input(
    small: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["say", "-", "--model", str(small.folder)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("bark-fast: error: standard input must be text in utf-8")
    assert not list(tmp_path.iterdir())
