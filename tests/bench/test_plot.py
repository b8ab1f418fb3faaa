from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.harness.report import render, write_report
from helpers.made_up_results import all_kinds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for made in all_kinds():
        made.write(tmp_path / f"{made.kind}.json")
    return tmp_path


def test_every_kind_gets_its_pictures(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["plot", str(folder)]) == 0
    made = sorted(path.name for path in folder.glob("*.png"))
    assert made == [
        "end_to_end-throughput.png",
        "end_to_end-time-by-stage.png",
        "kernels-floor.png",
        "serve-latency.png",
        "stages-floor.png",
    ]
    for name in made:
        picture = (folder / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 200_000


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path)]) == 1
    assert "no results" in capsys.readouterr().err


def test_the_report_has_a_table_for_each(folder: Path) -> None:
    path = write_report(folder)
    assert path is not None
    text = path.read_text()
    for kind in ("end to end", "stages", "kernels", "serve", "serve http"):
        assert f"## {kind}, small, bfloat16" in text
    assert "transformers (eager, batches of 4)" in text


def test_rows_are_as_wide_as_their_header() -> None:
    blocks = render(all_kinds()).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
