from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.harness.results import Case, Results, Spread
from helpers.made_up_results import results


def stages(*, b_s: float = 2.0, **settings: str) -> Results:
    cases = [Case("a", Spread.of([1.0, 1.1])), Case("b", Spread.of([b_s, b_s * 1.05]))]
    return results("stages", cases, **settings)


@pytest.fixture
def run(tmp_path: Path):
    def run(before: Results, after: Results, *flags: str) -> int:
        paths = [tmp_path / "before.json", tmp_path / "after.json"]
        for path, made in zip(paths, (before, after), strict=True):
            made.write(path)
        return main(["compare", *map(str, paths), *flags])

    return run


def test_equal_runs(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stages(), stages()) == 0
    assert "2 cases, 0 slower" in capsys.readouterr().out


def test_a_regression_is_found(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stages(), stages(b_s=2.5)) == 1
    out = capsys.readouterr().out
    assert "SLOWER" in next(line for line in out.splitlines() if line.startswith("b "))
    assert "SLOWER" not in next(line for line in out.splitlines() if line.startswith("a "))


def test_the_threshold_is_the_callers(run) -> None:
    assert run(stages(), stages(b_s=2.5), "--threshold", "30") == 0
    assert run(stages(), stages(b_s=2.5), "--threshold", "20") == 1
    assert run(stages(b_s=2.5), stages()) == 0  # faster is no regression


def test_within_the_spread_it_says_so(run, capsys: pytest.CaptureFixture[str]) -> None:
    before = results("stages", [Case("a", Spread.of([1.0, 1.0, 9.0]))])
    after = results("stages", [Case("a", Spread.of([1.0, 2.0, 2.0]))])
    assert run(before, after) == 1
    assert "within the runs' spread" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["size", "dtype", "device", "kind"])
def test_different_runs_are_refused(run, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = stages(**{key: "other"}) if key in ("size", "dtype") else stages()
    if key == "device":
        other.machine["device"] = "other"
    if key == "kind":
        other.kind = "other"
    assert run(stages(), other) == 2
    assert "other" in capsys.readouterr().err
    assert run(stages(), other, "--force") == 0


def test_no_common_case_and_no_results(run, tmp_path: Path) -> None:
    assert run(stages(), results("stages", [Case("c", Spread.of([1.0]))])) == 2
    assert main(["compare", str(tmp_path / "none.json"), str(tmp_path / "after.json")]) == 2


def test_missing_cases_are_told(run, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = stages()
    fewer.cases.pop()
    assert run(stages(), fewer) == 0
    assert "1 missing in the second" in capsys.readouterr().out
