"""Runs that are killed at any moment and begun again: the folder is that of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bark_fast import Bark
from bark_fast.bulk import ledger, run

from .conftest import quick, tree

ROWS = [
    *(quick(i, f"Row {i} is here. It goes on.", max_semantic_tokens=12) for i in range(36)),
    {"id": 3, "text": "once more"},
    {"text": "no id"},
    quick("nobody", voice="nobody"),
    quick("long", "A sentence is here. " * 12),
]


def in_fork(bark: Bark, out: Path, ends_at: tuple[str, int] | None = None) -> int:
    """Begin a run in a fork and return its process.

    Args:
        ends_at: it is killed before that call of a function of `os`, or after it ("fsync+").
    """
    if (child := os.fork()) != 0:
        return child
    try:
        if ends_at is not None:
            kill_at(*ends_at)
        run(ROWS, out, bark=bark)
        os._exit(0)
    except BaseException as error:
        os.write(2, repr(error).encode())
    os._exit(1)


def kill_at(name: str, number: int) -> None:
    """Let this process be killed at a call of os.fsync, os.replace, ... in the ledger."""
    plain, calls = name.removesuffix("+"), iter(range(number + 1))
    original = getattr(os, plain)

    def counted(*arguments: Any) -> Any:
        is_last = next(calls, number) == number
        result = None if is_last and plain == name else original(*arguments)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, plain, counted)


def journal_keys(out: Path) -> Counter[str]:
    """Return how often each row is in the journal."""
    path = out / ".bark-fast" / "journal.jsonl"
    if not path.exists():
        return Counter()
    lines = path.read_bytes().split(b"\n")
    return Counter(json.loads(line)["key"] for line in lines[:-1])


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PART_ROWS", 7)


@pytest.fixture
def undisturbed(bark: Bark, tmp_path: Path) -> dict[str, bytes]:
    run(ROWS, tmp_path / "undisturbed", bark=bark)
    return tree(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_random_moments(
    bark: Bark, tmp_path: Path, undisturbed: dict[str, bytes], number: signal.Signals
) -> None:
    out = tmp_path / "out"
    limit = 2 * bark.engine.runner.config.max_running
    moments = random.Random(int(number))
    kills = 0
    while True:
        child = in_fork(bark, out)
        # So many more rows, wherever in its work it is then: how long rows take is not known.
        more = len(list(out.glob("*.wav"))) + moments.randrange(8)
        ended = 0
        while ended == 0 and len(list(out.glob("*.wav"))) < more:
            ended, status = os.waitpid(child, os.WNOHANG)
        if ended == 0:
            time.sleep(moments.random() * 0.02)
            os.kill(child, number)
            ended, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        kills += 1
        # What was computed twice is there twice; a kill can cost no more than what was in flight.
        twice = sum(count - 1 for count in journal_keys(out).values())
        assert twice <= kills * limit
        assert {path.name for path in out.glob("*.wav")} <= set(undisturbed)
        if kills == 30:  # rows that end at once would let it take for ever
            moments = random.Random(0)
            moments.randrange = lambda *_: 100  # type: ignore[method-assign]
    assert kills >= 3
    assert tree(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsync", "replace", "replace+", "unlink+"])
def test_killed_between_any_two_steps_of_the_ledger(
    bark: Bark, tmp_path: Path, undisturbed: dict[str, bytes], name: str
) -> None:
    out = tmp_path / "out"
    kills = 0
    while True:
        child = in_fork(bark, out, (name, kills))  # one step later each time
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        kills += 1
    assert kills >= (1 if name == "unlink+" else 8)  # unlink comes at the very end
    assert tree(out) == undisturbed
