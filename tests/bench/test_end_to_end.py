"""Run both engines for real, on a tiny checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bark_fast import Bark, GenerationParams
from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.weights import load_weights
from bark_fast.kernels import why_not_native
from bench.__main__ import main
from bench.commands.end_to_end import compare_outputs
from bench.harness import arguments
from bench.harness.checkpoint import checkpoint_for, make_checkpoint
from bench.harness.engines import BarkFastEngine, EngineSettings, Output, WorkloadRun
from bench.harness.machine import Limits
from bench.harness.report import end_to_end_sides, render
from bench.harness.results import Results
from bench.harness.search import find_best
from bench.harness.worker import Worker, WorkerError
from bench.harness.workload import mixed_utterances, one_utterance

COMMON = ["--size", "tiny", "--dtype", "float32", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("bench") / "tiny", size="tiny", seed=0, dtype="float32"
    )


@pytest.fixture
def flags(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return common options; the limits are made up, because measuring them takes seconds."""
    limits = Limits(1e10, 1e10, 1e11, 1e11)
    monkeypatch.setattr(arguments, "measure_limits", lambda *_: limits)
    return [*COMMON, "--checkpoint", str(folder), "--json", str(tmp_path / "results.json")]


def test_the_end_is_never_drawn(folder: Path) -> None:
    bark = Bark.from_pretrained(folder, device="cpu", impl="torch")
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=250)
    speech = bark.generate("One two three.", params=params)
    assert speech.finish_reason == "length"
    assert len(speech.semantic_tokens) == 250


def test_a_checkpoint_is_kept_or_not(tmp_path: Path) -> None:
    options = {"size": "tiny", "seed": 0, "dtype": "bfloat16"}
    with checkpoint_for(None, **options) as passing:
        assert (passing / "config.json").exists()
    assert not passing.exists()
    for _ in range(2):  # made, then found
        with checkpoint_for(tmp_path / "deep" / "kept", **options) as kept:
            assert (kept / "config.json").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["kept"]
    for other in ({"size": "small"}, {"seed": 1}):
        with (
            pytest.raises(ValueError, match="must hold a checkpoint"),
            checkpoint_for(tmp_path / "deep" / "kept", **(options | other)),
        ):
            pass


@pytest.mark.slow
def test_end_to_end(flags: list[str], tmp_path: Path) -> None:
    options = [
        "--requests", "1", "3", "--semantic-tokens", "8", "--shortest", "5", "--longest", "9",
        "--runs", "1", "--batch-sizes", "1", "2", "--impl", "torch",
    ]  # fmt: skip
    in_8_bits = why_not_native(torch.device("cpu"), torch.bfloat16, int8=True) is None
    if in_8_bits:
        options.append("--int8")
    assert main(["end_to_end", *flags, *options]) == 0
    results = Results.read(tmp_path / "results.json")
    assert results.settings["outputs_equal_float32"] is True
    assert [case.name for case in results.cases] == ["1 request", "3 mixed requests"]
    one, three = (case.values for case in results.cases)
    assert one["equal_tokens"]["semantic"] == one["equal_tokens"]["fine"] == 1.0
    assert one["bark_fast"]["first_audio_s"]["median"] > 0
    assert {trial["batch_size"] for trial in three["transformers"]["tried"]} == {1, 2}
    for values in (one, three):
        sides = [values[name] for name in end_to_end_sides(values)]
        assert len(sides) == 2 + in_8_bits
        for side in sides:
            assert side["audio_s_per_s"] * side["real_time_factor"] == pytest.approx(1)
            assert side["latency_p50_s"] <= side["latency_p95_s"] <= side["seconds"]["max"] * 1.01
            assert side["peak_bytes"] > 2**20
            assert all(seconds > 0 for seconds in side["stage_s"].values())
    assert three["bark_fast"]["latency_p50_s"] > 0


def test_stages(flags: list[str], tmp_path: Path) -> None:
    options = ["--batches", "1", "2", "--contexts", "20", "--semantic-tokens", "20", "--runs", "1"]
    assert main(["stages", *flags, *options, "--impl", "torch"]) == 0
    results = Results.read(tmp_path / "results.json")
    names = [case.name for case in results.cases]
    for part in ("semantic decode", "coarse decode", "prefill", "fine window", "codec"):
        assert any(part in name for name in names)
    assert len(set(names)) == len(names)
    for case in results.cases:
        assert case.values["of_floor"] == case.values["floor_s"] / case.seconds.median


def test_serve(flags: list[str], tmp_path: Path) -> None:
    options = ["--count", "3", "--rates", "50", "20", "--shortest", "3", "--longest", "5"]
    assert main(["serve", *flags, *options, "--impl", "torch"]) == 0
    results = Results.read(tmp_path / "results.json")
    assert [case.values["rate_per_s"] for case in results.cases] == [50, 20]
    for case in results.cases:
        assert case.values["requests"] == 3
        assert case.seconds.min <= case.values["latency_p50_s"] <= case.values["latency_max_s"]


def test_load(folder: Path, flags: list[str], tmp_path: Path) -> None:
    options = ["--precisions", "float32", "--semantic-tokens", "5", "--runs", "1"]
    assert main(["load", *flags, *options]) == 0
    results = Results.read(tmp_path / "results.json")
    (case,) = results.cases
    assert case.name == "float32"
    assert case.seconds.min > 0
    source = Source.open(folder)
    tensors = load_weights(
        TensorsInFiles(source), read_config(source), dtype=torch.float32, device=torch.device("cpu")
    )
    stored = sum(tensor.numel() * 4 for tensor in tensors.values())
    # Of a head only the rows that can be drawn are served, and of a tied one a packed copy.
    assert 0.8 * stored < case.values["weight_bytes"] < 1.2 * stored
    assert case.values["peak_bytes"]["min"] > case.values["weight_bytes"]
    assert "weights GiB" in render([results])


def test_contention(folder: Path, flags: list[str], tmp_path: Path) -> None:
    options = ["--busy", "1", "--semantic-tokens", "4", "--impl", "torch"]
    assert main(["contention", *flags, *options]) == 0
    results = Results.read(tmp_path / "results.json")
    alone, beside = results.cases
    cores = len(os.sched_getaffinity(0))
    assert beside.values["fair_share"] == cores / (cores + 1)
    share = beside.seconds.median * beside.values["fair_share"]
    assert beside.values["ratio"] == pytest.approx(share / alone.seconds.median)
    assert "| busy=1 |" in render([results])


@pytest.mark.slow
def test_bulk(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    options = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--runs", "1"]
    options += ["--rows", "3", "--max-tokens", "100", "--kill-rows", "12", "--kills", "1"]
    assert main(["bulk", *options, "--json", str(path)]) == 0
    both, killed = Results.read(path).cases[:2], Results.read(path).cases[2]
    assert [case.values["rows"] for case in both] == [3, 3]
    assert killed.values["equal"]


def test_ours_says_when_each_was_done(folder: Path) -> None:
    side = BarkFastEngine(EngineSettings(folder, dtype="float32", device="cpu", impl="torch"))
    requests = mixed_utterances(3, shortest=4, longest=12)
    made = side.run(requests, keep=True)
    assert made.outputs is not None
    assert [len(output.semantic) for output in made.outputs] == [u.n_tokens for u in requests]
    assert min(made.done_s) > 0
    assert max(made.done_s) <= made.seconds
    assert side.first_audio_s(one_utterance(5)[0]) > 0


def test_shares_of_equal_tokens() -> None:
    def made(last: int) -> WorkloadRun:
        output = Output(np.array([1, 2, 3, last]), np.array([[1, last]]), np.array([0.0, last]))
        return WorkloadRun(1.0, [1.0], 1.0, {}, 0, [output])

    assert compare_outputs(made(4), made(4)) == {"semantic": 1.0, "fine": 1.0, "audio_error": 0.0}
    assert compare_outputs(made(4), made(5)) == {"semantic": 0.75, "fine": 0.5, "audio_error": 1.0}


class FakeWorker:
    """Takes the given seconds for each batch size; None means out of memory."""

    def __init__(self, seconds: dict[int, float | None]) -> None:
        self.seconds, self.tried = seconds, []

    def call(self, method: str, utterances: object, *, batch_size: int) -> WorkloadRun:
        self.tried.append(batch_size)
        seconds = self.seconds[batch_size]
        if seconds is None:
            raise WorkerError("CUDA out of memory")
        return WorkloadRun(seconds, [seconds], 1.0, {}, 0)


@pytest.mark.parametrize(
    ("seconds", "tried", "best"),
    [
        ({1: 9.0, 2: 5.0, 4: 4.0, 8: 3.0}, [8, 4, 2], 8),
        ({1: 9.0, 2: 1.0, 4: 2.0, 8: 3.0}, [8, 4, 2, 1], 2),
        ({1: 9.0, 2: 5.0, 4: 6.0, 8: None}, [8, 4, 2, 1], 2),
        ({1: 1.0, 2: 5.0, 4: 2.0, 8: 3.0}, [8, 4, 2, 1], 1),
    ],
)
def test_the_best_batch_is_looked_for(
    seconds: dict[int, float | None], tried: list[int], best: int
) -> None:
    worker = FakeWorker(seconds)
    requests = mixed_utterances(8, n_voices=1)
    trials = find_best({"eager": worker}, requests, [1, 2, 4, 8], search_s=60)
    assert worker.tried == tried
    assert trials[0].batch_size == best


def test_the_other_attention_is_tried_at_the_best_size() -> None:
    eager, flash = FakeWorker({1: 2.0, 2: 1.0}), FakeWorker({2: 0.5})
    trials = find_best(
        {"eager": eager, "flash": flash}, mixed_utterances(2, n_voices=1), [1, 2], search_s=60
    )
    assert flash.tried == [2]
    assert (trials[0].attention, trials[0].batch_size) == ("flash", 2)


def test_a_worker_tells_what_went_wrong() -> None:
    with Worker(torch.Generator, device="cpu") as worker:
        assert worker.call("initial_seed") > 0
        with pytest.raises(WorkerError, match="AttributeError"):
            worker.call("no_such_method")
        assert worker.call("initial_seed") > 0  # it lives on
    with (
        Worker(torch.Generator, device="no such device") as worker,
        pytest.raises(WorkerError, match="no such device"),
    ):
        worker.wait()
