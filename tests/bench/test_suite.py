from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.commands import suite
from bench.commands.suite import Outcome, Part, gpu_parts, quick_parts, run_parts
from bench.harness.results import Results

OK = ("-c", "print('done')")
FAILS = ("-c", "print('about to fail'); raise SystemExit(3)")
HANGS = ("-c", "import time; print('hangs', flush=True); time.sleep(60)")


def test_a_part_that_fails_or_hangs_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    parts = [
        Part("first", OK, 20), Part("fails", FAILS, 20), Part("hangs", HANGS, 2),
        Part("last one", OK, 20),
    ]  # fmt: skip
    outcomes = run_parts(parts, tmp_path, budget_s=60)
    assert [o.status for o in outcomes] == ["ok", "failed", "killed", "ok"]
    assert time.monotonic() - start < 20
    assert (tmp_path / "logs" / "last-one.log").read_text() == "done\n"
    assert "about to fail" in capsys.readouterr().out


def test_when_the_time_is_over_only_the_summing_up_is_done(tmp_path: Path) -> None:
    parts = [Part("hangs", HANGS, 20), Part("late", OK, 20), Part("plot", OK, 20, always=True)]
    outcomes = run_parts(parts, tmp_path, budget_s=2)
    assert [o.status for o in outcomes] == ["killed", "not run", "ok"]


@pytest.mark.parametrize(("command", "status"), [(OK, 0), (FAILS, 1)])
def test_the_exit_status_tells_whether_all_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], status: int
) -> None:
    parts = [Part("one", command, 20), Part("two", OK, 20)]
    monkeypatch.setattr(suite, "quick_parts", lambda *_: parts)
    assert suite.run_all("quick", tmp_path, None) == status
    summary = Results.read(tmp_path / "summary.json")
    assert [case.values["status"] for case in summary.cases][1] == "ok"


def test_parts_and_their_files_have_names_of_their_own(tmp_path: Path) -> None:
    for parts in (quick_parts(tmp_path, tmp_path), gpu_parts(tmp_path, tmp_path)):
        assert len({part.name for part in parts}) == len(parts)
        assert parts[-1].always
    assert sum(part.limit_s for part in quick_parts(tmp_path, tmp_path)) < 240


def test_summary_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite.print_summary([Outcome("one", "ok", 1.0, 2.0)], tmp_path)
    assert "one" in capsys.readouterr().out
