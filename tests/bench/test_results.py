from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.commands.peers import shown
from bench.harness.results import (
    RESULTS,
    Case,
    Results,
    ResultsError,
    Spread,
    percentile,
    read_folder,
)
from helpers.made_up_results import all_kinds, results


@pytest.mark.parametrize("made", all_kinds(), ids=lambda made: made.kind)
def test_what_is_written_is_read(made: Results, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    made.write(path)
    assert json.loads(path.read_text())["schema"] == 1
    assert Results.read(path) == made


def test_no_path_writes_nothing() -> None:
    results("kernels", []).write(None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "no results of schema 1"),
        ('{"schema": 0}', "no results of schema 1"),
        ('{"schema": 1, "kind": "kernels"}', "fields missing"),
        ('{"schema": 1, "cases": [{}]}', "fields missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ResultsError, match=message):
        Results.read(path)


def test_a_folder_passes_over_other_files(tmp_path: Path) -> None:
    results("stages", [Case("a", Spread.of([1.0]))]).write(tmp_path / "b.json")
    (tmp_path / "a.json").write_text('{"device": "of an older form"}')
    assert [path.name for path, _ in read_folder(tmp_path)] == ["b.json"]


def test_spread() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.min, spread.max) == (2.5, 1.0, 10.0)
    assert spread.runs == (3.0, 1.0, 2.0, 10.0)
    assert spread.divided(2) == Spread.of([1.5, 0.5, 1.0, 5.0])
    assert Spread.of([1.0] * 100).runs == ()


@pytest.mark.parametrize(
    ("n", "p", "expected"),
    [(1, 0.5, 1), (1, 0.95, 1), (2, 0.5, 1), (4, 0.5, 2), (20, 0.95, 19), (21, 0.95, 20),
     (100, 0.95, 95), (100, 0.07, 7), (10, 0.0, 1), (10, 1.0, 10)],
)  # fmt: skip
def test_percentile_is_a_value_that_was_measured(n: int, p: float, expected: float) -> None:
    assert percentile([float(i) for i in range(n, 0, -1)], p) == expected


def test_figures_of_peers_are_quoted_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers"]) == 0
    printed = capsys.readouterr().out
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    for line in shown():
        assert line in printed
        assert line in page
