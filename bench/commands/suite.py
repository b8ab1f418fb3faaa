"""Run all benchmarks in one command, each in a separate process.

A part that fails or hangs ends alone: the others run all the same, and the summary at the end says
which it was. What a part has measured is on disk at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bark_fast.kernels.triton import schedules
from bench.harness.machine import describe_machine, describe_versions, device_folder
from bench.harness.parts import ROOT, Outcome, Part, print_outcomes, run_parts
from bench.harness.results import RESULTS, Case, Results, Spread

_BUDGET_S = {"quick": 110.0, "gpu_all": 470.0}
_KERNEL_TESTS = tuple(
    f"tests/kernels/test_{name}.py" for name in ("linear", "attention", "sampling", "gathers")
)


@dataclass(frozen=True)
class Scale:
    """How much `--gpu-all` does: all of it on a GPU, or a rehearsal that any CPU can do.

    Attributes:
        on: device and dtype.
        sizes: of the two models, the more important first.
        kernels: what `kernels` measures.
        batches, contexts: of decode steps.
        rows: batch sizes of the other stages.
        requests: that are made together.
        lengths: semantic tokens, of one request and of mixed ones.
        few_runs: for what takes long.
        rival: batch sizes of transformers.
        tests: options of pytest for the kernels' tests.
        jobs: processes that compile and test.
    """

    on: tuple[str, ...]
    sizes: tuple[str, str]
    kernels: tuple[str, ...]
    batches: tuple[str, ...]
    contexts: tuple[str, ...]
    rows: tuple[str, ...]
    requests: tuple[str, ...]
    lengths: tuple[str, ...]
    few_runs: tuple[str, ...]
    rival: tuple[str, ...]
    tests: tuple[str, ...]
    jobs: int

    @property
    def on_gpu(self) -> bool:
        return "cuda" in self.on


def on_a_gpu() -> Scale:
    """Return the scale that eight minutes are enough for."""
    return Scale(
        on=("--device", "cuda", "--dtype", "bfloat16"),
        sizes=("large", "small"),
        kernels=(),
        batches=("1", "16", "64", "256"),
        contexts=("300", "700"),
        rows=("1", "8"),
        requests=("1", "64", "256"),
        lengths=("--semantic-tokens", "250"),
        few_runs=("--runs", "2"),
        rival=("64",),
        tests=("-k", "triton and not triton-small"),
        jobs=min(14, os.cpu_count() or 1),
    )


def rehearsal() -> Scale:
    """Return a scale at which a CPU runs every part, to find what would fail on a GPU."""
    return Scale(
        on=("--device", "cpu", "--dtype", "float32", "--runs", "1"),
        sizes=("tiny", "tiny"),
        kernels=("--only", "M=1"),
        batches=("1", "2"),
        contexts=("20",),
        rows=("1",),
        requests=("1", "3"),
        lengths=("--semantic-tokens", "8", "--shortest", "8", "--longest", "12"),
        few_runs=(),
        rival=("2",),
        tests=("-k", "test_a_sum_does_not_depend"),
        jobs=1,
    )


def quick_parts(folder: Path, work: Path) -> list[Part]:
    """Return every part once, at sizes that two CPU cores get through in two minutes."""
    stages = str(folder / "stages.json")
    few = ("--shortest", "8", "--longest", "16")
    return [
        _bench("kernels", folder, 40, "--size", "small"),
        _bench(
            "stages", folder, 50, "--size", "small", "--checkpoint", str(work / "small"),
            "--batches", "1", "4", "--only", "decode", "codec",
        ),
        _bench(
            "end_to_end", folder, 60, "--size", "tiny", "--checkpoint", str(work / "tiny"),
            "--dtype", "float32", "--requests", "1", "4", "--semantic-tokens", "16", *few,
        ),
        _bench(
            "serve", folder, 30, "--size", "tiny", "--checkpoint", str(work / "tiny"),
            "--dtype", "float32", "--count", "6", "--seconds", "3", *few,
        ),
        _bench("contention", folder, 25, "--size", "demo", "--dtype", "float32", "--runs", "2"),
        Part("compare", ("-m", "bench", "compare", stages, stages), 15),
        Part("plot", ("-m", "bench", "plot", str(folder)), 15, always=True),
    ]  # fmt: skip


def gpu_parts(folder: Path, work: Path, scale: Scale) -> list[Part]:
    """Return the parts worth running on a GPU, the most worthwhile first.

    Limits are half as much again as a part is expected to take, and more than eight minutes
    together: the last parts have what the first left.
    """
    large, small = scale.sizes

    def bench(command: str, limit_s: float, size: str, *arguments: str, tail: str = "") -> Part:
        where = () if command == "kernels" else ("--checkpoint", str(work / size))
        name = "-".join(filter(None, (command, "small" if size == small else "large", tail)))
        if size == large == small:  # a rehearsal: parts of both sizes need names of their own
            name = f"{command}-{tail}" if tail else command
        return _bench(
            command, folder, limit_s, "--size", size, *where, *scale.on, *arguments, name=name
        )

    def tests(name: str, limit_s: float, *arguments: str) -> Part:
        quiet = ("-m", "pytest", "-q", "--dist=worksteal", "-n", str(scale.jobs))
        return Part(name, (*quiet, *arguments), limit_s)

    decode = ("--batches", *scale.batches, "--contexts", *scale.contexts, "--only", "decode")
    rest = ("--batches", *scale.rows, "--only", "prefill", "fine", "codec")
    requests = ("--requests", *scale.requests, *scale.lengths)
    parts = [
        _bench("machine", folder, 40, *scale.on),
        _bench("smoke", folder, 90, *scale.on[:4]),
        *_compile(scale),
        tests("kernel tests", 75, *_KERNEL_TESTS, *scale.tests),
        bench("stages", 80, large, *decode, tail="decode"),
        *_tune(scale),
        bench("throughput", 90, large, *requests, *scale.few_runs),
        tests("gpu tests", 75, "-m", "gpu", "tests/test_gpu.py"),
        bench("stages", 60, large, *rest, tail="rest"),
        bench("kernels", 60, large, *scale.kernels),
        bench(
            # Each try of transformers takes long: the largest static batch alone.
            "end_to_end", 180, large, "--requests", *scale.requests[:2], *scale.lengths,
            "--batch-sizes", *scale.rival, "--search-s", "1", "--budget-s", "90", "--keep-going",
        ),
    ]  # fmt: skip
    if small != large:
        parts += [
            bench("stages", 45, large, *decode, tail="decode-tuned"),
            bench("stages", 60, small, *decode, tail="decode"),
            bench("throughput", 60, small, *requests, *scale.few_runs),
            tests("all kernel tests", 75, *_KERNEL_TESTS),
            bench("kernels", 60, small, *scale.kernels),
        ]
    return [*parts, Part("plot", ("-m", "bench", "plot", str(folder)), 20, always=True)]


def _compile(scale: Scale) -> list[Part]:
    """Return the part that compiles all that an engine launches, in parallel, into the cache."""
    target, sizes = "80", ["small", "large"]
    if scale.on_gpu:
        major, _ = torch.cuda.get_device_capability()
        target = f"{max(8, major)}0"
    else:
        sizes = []  # compiling takes a CPU minutes; reading the command does not
    command = ["-m", "bark_fast.kernels.aot", "--dtypes", "bfloat16", "--targets", target]
    how = ["--sizes", *sizes, "--jobs", str(scale.jobs)] if sizes else ["--help"]
    return [Part("compile", (*command, *how), 60)]


def _tune(scale: Scale) -> list[Part]:
    """Return the part that tunes the launches of the larger model, which only a GPU can do."""
    how = ("--sizes", scale.sizes[0], "--budget-s", "45") if scale.on_gpu else ("--help",)
    return [Part("tune", ("-m", "bench", "tune", *how), 80)]


def run_all(kind: str, folder: Path | None, budget_s: float | None, *, rehearse: bool) -> int:
    """Run "quick" or "gpu_all"; return 1 if a part was not ok.

    Args:
        folder: for the results; None picks one.
        budget_s: time for all parts; None is the time that the kind is meant to take.
        rehearse: run every part of "gpu_all" on the CPU, at tiny sizes.
    """
    if kind == "gpu_all" and not rehearse and not torch.cuda.is_available():
        print("--gpu-all needs a CUDA device, or --rehearse", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work:
        if kind == "quick" or rehearse:
            folder = folder or Path(tempfile.mkdtemp(prefix="bench-"))
        else:
            folder = folder or RESULTS / device_folder(torch.device("cuda"))
        if kind == "quick":
            parts = quick_parts(folder, Path(work))
        else:
            parts = gpu_parts(folder, Path(work), rehearsal() if rehearse else on_a_gpu())
        outcomes = run_parts(
            parts,
            folder,
            budget_s or _BUDGET_S[kind],
            after_each=partial(write_summary, kind, folder),
        )
    if schedules.TABLES.is_dir() and not rehearse:  # what tuning wrote
        shutil.copytree(schedules.TABLES, folder / "tables", dirs_exist_ok=True)
    print_outcomes(outcomes, folder)
    if kind == "gpu_all":
        # Here, not in a part: it is the screen that the run ends with.
        subprocess.run([sys.executable, "-m", "bench", "aims", folder], cwd=ROOT, check=False)
    return 0 if all(outcome.status == "ok" for outcome in outcomes) else 1


def write_summary(kind: str, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes as one more file of results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [
        Case(
            o.name,
            Spread.of([o.seconds]),
            {"status": o.status, "limit_s": o.limit_s, "tail": list(o.tail)},
        )
        for o in outcomes
    ]
    machine, versions = describe_machine(device), describe_versions()
    Results("summary", machine, versions, {"parts": kind}, {}, cases).write(folder / "summary.json")


def _bench(command: str, folder: Path, limit_s: float, *arguments: str, name: str = "") -> Part:
    name = name or command
    output = ("--json", str(folder / f"{name}.json"))
    return Part(name, ("-m", "bench", command, *arguments, *output), limit_s)
