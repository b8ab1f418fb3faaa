"""Each program in examples/ runs as a reader would run it, and writes speech."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

EXAMPLES = Path(__file__).parent.parent / "examples"
SPOKEN = {
    "one_utterance": {"hello": "Hello, my dog is cute."},
    "long_text": {
        "long": "The weather is nice. We will go to the garden. The children play with a small dog."
    },
    "many_texts": {
        "0": "How are you today?",
        "1": "The train to the city was late.",
        "2": "My brother has a new bicycle.",
        "3": "It rained for three days.",
    },
    "async_tasks": {"anna": "Good morning, Anna.", "peter": "Good morning, Peter."},
    "http_client": {
        "one": "Hello, my dog is cute.",
        "long": (
            "The weather is nice. We will go to the garden. The children play with a small dog."
        ),
    },
    "from_transformers": {"0": "Hello, my dog is cute.", "1": "Where did you put the key?"},
}
"""The text of every file that a program writes, by the file's name."""


def run(program: str, *arguments: str, cwd: Path) -> None:
    """Run an example in a folder."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{program}.py", *arguments],
        cwd=cwd,
        # The demo voice is too small for a second thread to pay.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def assert_speech(path: Path, text: str) -> None:
    """Check that a file is audible and lasts as long as its text should."""
    samples, sample_rate_hz = soundfile.read(path)
    assert sample_rate_hz == 24_000
    letters = sum(c.isalpha() for c in text)
    assert np.isfinite(samples).all()
    # Without the moment of silence around it.
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    assert 0.035 * letters < (loud[-1] - loud[0]) / sample_rate_hz < 0.12 * letters
    assert np.sqrt(np.mean(samples**2)) > 0.01, "silence"
    assert np.abs(samples).max() <= 1


@pytest.mark.parametrize("program", SPOKEN)
def test_example(program: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if program == "async_tasks":  # one of them without its argument
        run(program, cwd=folder)
    else:
        run(program, str(folder), cwd=tmp_path)
    assert os.listdir(tmp_path) == ["out"], "a file outside the folder"
    written = {path.stem: path for path in folder.iterdir() if path.suffix != ".npz"}
    assert written.keys() == SPOKEN[program].keys()
    for name, text in SPOKEN[program].items():
        assert_speech(written[name], text)


def test_every_example_is_here_and_short() -> None:
    programs = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in programs] == sorted(SPOKEN)
    for path in programs:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40, path.name
