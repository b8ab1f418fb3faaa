"""The command: what it prints, its exit statuses, and signals."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bark_fast.bulk import Summary, command
from bark_fast.cli import main
from helpers.checkpoints import Checkpoint

from .conftest import manifest, quick, write_jsonl

ROOT = Path(__file__).parents[2]


def arguments(small: Checkpoint, *more: Any) -> list[str]:
    return ["bulk", *map(str, more), "--model", str(small.folder), "--device", "cpu"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [quick(i) for i in range(3)])


def test_exit_statuses(
    small: Checkpoint, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(small, rows, out)) == 0
    assert "3 of 3 rows done (0 before), 0 failed" in capsys.readouterr().err
    assert main(arguments(small, rows, out)) == 0
    assert "3 of 3 rows done (3 before), 0 failed" in capsys.readouterr().err
    rows.write_text(rows.read_text() + "{\n")
    assert main(arguments(small, rows, out)) == 1
    assert "3 of 4 rows done (3 before), 1 failed" in capsys.readouterr().err
    assert len(manifest(out)) == 4
    assert main(arguments(small, rows, out, "--max-errors", 0)) == 1
    assert len(manifest(out)) == 4
    assert main(arguments(small, tmp_path / "none.jsonl", out)) == 2
    assert "bark-fast: error: IN must be" in capsys.readouterr().err


def test_too_many_errors_are_said(
    small: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{}, quick("a")])
    assert main(arguments(small, rows, tmp_path / "out", "--max-errors", 0)) == 1
    assert "too many rows failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--shard", "2/2"), ("--shard", "1"), ("--shard", "-1/2"), ("--format", "exe"),
     ("--manifest", "csv"), ("--seed", "-1"), ("--seed", "x"), ("--max-errors", "-1"),
     ("--pause", "61"), ("--max-batch-size", "0")],
)  # fmt: skip
def test_wrong_options(
    small: Checkpoint, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    option: str, value: str,
) -> None:  # fmt: skip
    assert main(arguments(small, rows, tmp_path / "out", option, value)) == 2
    message = capsys.readouterr().err
    assert message.startswith("bark-fast: error: ")
    assert option.strip("-").replace("-", "_") in message.replace("-", "_")
    assert not list(tmp_path.glob("out/*.*"))


def test_options_reach_the_run(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [quick(i, extra=1) for i in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    out = tmp_path / "out"
    for i in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        options = ["--shard", f"{i}/2", "--format", "flac", "--ignore-unknown", "--seed", 9]
        assert main(arguments(small, "-", out, *options, "--max-batch-size", 2)) == 0
    assert len(list(out.glob("*.flac"))) == 6
    assert len(manifest(out)) == 6


def test_elsewhere_than_a_terminal_there_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with command._reporting(100) as report:
        for second in range(0, 181, 10):
            now[0] = float(second)
            report(Summary(rows=50, done=second // 2, skipped=5, audio_s=9.0, elapsed_s=second))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "30 of 50 rows done (5 before), 0 failed, 60.0 s for 9.0 s of speech, "
        "real-time factor 6.667, about 0:02:48 left"
    )


def test_a_terminal_gets_a_bar(small: Checkpoint, rows: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(small, rows, tmp_path / "out", stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    assert b"3/3" in shown
    assert b"real-time factor" in shown


def start(small: Checkpoint, *more: Any, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "bark_fast", *arguments(small, *more)],
        stderr=stderr,
        env=environment,
        cwd=ROOT,
    )


def test_ctrl_c_ends_a_run_and_another_goes_on(small: Checkpoint, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [quick(i) for i in range(200)])
    out = tmp_path / "out"
    process = start(small, rows, out)
    while not list(out.glob("*.wav")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    assert (process.wait(), "interrupted" in message) == (130, True), message
    assert 0 < len(list(out.glob("*.wav"))) < 200
    assert not list(out.glob("manifest*"))
    assert main(arguments(small, rows, out)) == 0
    assert len(manifest(out)) == 200


def test_another_run_on_the_folder_is_refused(
    small: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release, write = os.pipe()
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "bark_fast", *arguments(small, "-", out)],
        stdin=release, env=environment, cwd=ROOT,
    )  # fmt: skip
    os.close(release)
    os.write(write, json.dumps(quick("a")).encode() + b"\n")
    killer = threading.Timer(120, process.kill)
    killer.start()
    while not (out / ".bark-fast" / "0-of-1.lock").exists() and process.poll() is None:
        time.sleep(0.05)
    rows = write_jsonl(tmp_path / "rows.jsonl", [quick("b")])
    assert main(arguments(small, rows, out)) == 2
    assert "no other run is writing to" in capsys.readouterr().err
    os.close(write)
    assert process.wait() == 0
    killer.cancel()
    assert main(arguments(small, rows, out)) == 0
