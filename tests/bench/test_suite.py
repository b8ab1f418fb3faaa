from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import pytest
import torch

from bench.__main__ import _COMMANDS, main
from bench.commands import suite
from bench.commands.aims import screen
from bench.commands.suite import gpu_parts, on_a_gpu, quick_parts, rehearsal
from bench.harness import arguments
from bench.harness.parts import Outcome, Part, print_outcomes, run_parts
from bench.harness.results import Case, Results, Spread, read_folder
from helpers.made_up_results import results

OK = ("-c", "print('done')")
FAILS = ("-c", "print('about to fail'); raise SystemExit(3)")
HANGS = ("-c", "import time; print('hangs', flush=True); time.sleep(600)")


def test_a_part_that_fails_or_hangs_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    parts = [
        Part("first", OK, 60), Part("fails", FAILS, 60), Part("hangs", HANGS, 2),
        Part("last one", OK, 60),
    ]  # fmt: skip
    outcomes = run_parts(parts, tmp_path, budget_s=300)
    assert [o.status for o in outcomes] == ["ok", "failed", "killed", "ok"]
    assert time.monotonic() - start < 300, "the one that hangs was waited for"
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
    assert suite.run_all("quick", tmp_path, None, rehearse=False) == status
    summary = Results.read(tmp_path / "summary.json")
    assert [case.values["status"] for case in summary.cases][1] == "ok"


def test_parts_and_their_files_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert sum(part.limit_s for part in quick_parts(tmp_path, tmp_path)) < 240
    gpu = gpu_parts(tmp_path, tmp_path, on_a_gpu())
    for parts in (quick_parts(tmp_path, tmp_path), gpu, gpu_parts(tmp_path, tmp_path, rehearsal())):
        assert len({part.name for part in parts}) == len(parts)
        files = [part.command[-1] for part in parts if "--json" in part.command]
        assert len(set(files)) == len(files)
        assert parts[-1].always


def test_a_rehearsal_leaves_out_no_kind_of_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    kinds = [
        {part.command[:3] for part in gpu_parts(tmp_path, tmp_path, scale)}
        for scale in (on_a_gpu(), rehearsal())
    ]
    assert kinds[0] == kinds[1]
    for module in _COMMANDS.values():
        monkeypatch.setattr(module, "run", lambda arguments: 0)
    for part in gpu_parts(tmp_path, tmp_path, on_a_gpu()):
        if part.command[1] == "bench":
            assert main(part.command[2:]) == 0, "its options are understood"


@pytest.mark.slow
def test_every_part_of_the_gpu_run_runs_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which spares each part its start; `end_to_end` has tests of its own."""
    # Measured once, not for each part.
    monkeypatch.setattr(arguments, "measure_limits", cache(arguments.measure_limits))
    for part in gpu_parts(tmp_path, tmp_path / "work", rehearsal()):
        if part.command[:2] == ("-m", "bench") and part.name not in ("tune", "end_to_end"):
            assert main(part.command[2:]) == 0, part.name
    assert main(["aims", str(tmp_path)]) == 0
    assert "audio s/s of bark, 256 mixed requests" in capsys.readouterr().out
    kinds = {results.kind for _, results in read_folder(tmp_path)}
    assert kinds == {"machine", "smoke", "stages", "throughput", "kernels"}


def test_summary_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [
        Outcome("one", "ok", 1.0, 2.0, ("fine",)),
        Outcome("two", "failed", 1.0, 2.0, ("a", "b", "c", "the reason")),
    ]
    print_outcomes(outcomes, tmp_path)
    printed = capsys.readouterr().out
    assert "one" in printed
    assert "the reason" in printed
    assert "fine" not in printed


def test_aims_are_judged_by_what_was_measured() -> None:
    rates = [
        Case(f"{n} mixed requests", Spread.of([1.0]),
             {"audio_s_per_s": rate, "compiled_after_warm_up": []})
        for n, rate in ((64, 160.0), (256, 140.0))
    ]  # fmt: skip
    step = Case("semantic decode after 700, B=1", Spread.of([1.0]), {"step_without_look_s": 250e-6})
    tests = [Case("smoke", Spread.of([1.0]), {"status": "ok"}),
             Case("gpu tests", Spread.of([1.0]), {"status": "killed"})]  # fmt: skip
    found = [
        results("throughput", rates, size="large"), results("stages", [step], size="large"),
        results("summary", tests),
    ]  # fmt: skip
    lines = {line[:44].strip(): line.split()[-1] for line in screen(found, {})}
    assert lines["audio s/s of bark, 64 mixed requests"] == "met"
    assert lines["audio s/s of bark, 256 mixed requests"] == "MISSED"
    assert lines["decode step of bark, B=1 after 700, us"] == "met"
    assert lines["decode step of bark, B=64 after 700, us"] == "measured"  # not
    assert lines["kernels compiled after warm-up"] == "met"
    assert lines["tests that failed (smoke, kernels, gpu)"] == "MISSED"
