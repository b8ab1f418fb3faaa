from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bark_fast.kernels import aot
from bark_fast.kernels.triton import schedules
from bark_fast.kernels.triton.schedules import (
    ANY_ROWS,
    DecodeLaunch,
    Device,
    Table,
)
from bench.cases.kernels import KernelCase
from bench.commands import tune
from bench.commands.tune import fastest

CPU = torch.device("cpu")
A = DecodeLaunch(block_n=16, block_k=64, num_warps=2)
A_WIDE = replace(A, programs=264)
B = replace(A, block_k=32, num_warps=1)
KEY = ("DecodeLaunch", "torch.float16", (32, 64))


def test_the_fastest_may_differ_by_rows_within_one_order() -> None:
    seconds = {A: [1.0, 8.0], A_WIDE: [2.0, 4.0]}
    assert fastest(A, seconds, [1, 64]) == {1: A, 64: A_WIDE}


def test_one_order_serves_all_rows() -> None:
    """B is the best for one row, but loses in all."""
    seconds = {A: [1.0, 1.0], B: [0.9, 1.5]}
    assert fastest(A, seconds, [1, 64]) == {1: A, 64: A}
    assert fastest(A, {A: [1.0, 1.0], B: [0.5, 1.2]}, [1, 64]) == {1: B, 64: B}


def test_the_default_stays_for_less_than_chance() -> None:
    assert fastest(A, {A: [1.0], A_WIDE: [0.99], B: [0.985]}, [1]) == {1: A}
    assert fastest(A, {A: [1.0], A_WIDE: [0.97]}, [1]) == {1: A_WIDE}


def test_cases_of_the_same_rows_are_summed() -> None:
    """A launch that serves two cases of one choice: each in times of the default's."""
    seconds = {A: [1.0, 100.0], B: [0.5, 130.0]}
    assert fastest(A, seconds, [1, 1]) == {1: B}
    assert fastest(A, {A: [1.0, 100.0], B: [0.9, 130.0]}, [1, 1]) == {1: A}


def test_a_candidate_that_failed_somewhere_is_no_choice() -> None:
    assert fastest(A, {A: [1.0, 1.0]}, [1, 64]) == {1: A, 64: A}


def case(run: Callable[[DecodeLaunch], Tensor], exact: Tensor | None = None) -> KernelCase:
    """Return a case whose output depends on the launch under trial."""

    def call() -> Tensor:
        return run(schedules.choose(DecodeLaunch, (32, 64), torch.empty(1).half()))

    good = torch.linspace(0, 1, 32).half() if exact is None else exact
    return KernelCase("x", call, call, 1, plain=lambda cast: cast(good))


GOOD = torch.linspace(0, 1, 32).half()


def tuned(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[DecodeLaunch], Tensor], *launches: DecodeLaunch
) -> tune.Tuned:
    monkeypatch.setattr(tune, "candidates_of", lambda key: launches)
    times = {A: 3.0, A_WIDE: 2.0, B: 1.0}

    def timer(call: Callable[[], object]) -> float:
        with_trial = schedules._trial.get()
        assert with_trial is not None
        return times[with_trial.launch]  # type: ignore[index]

    return tune.tune(KEY, [(case(run), 1)], CPU, timer)


def test_a_wrong_candidate_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, lambda launch: GOOD + 0.1 * (launch == B), A, A_WIDE, B)
    assert found.entry == ((ANY_ROWS, A_WIDE),)
    assert "error 0.1" in found.failures[B]
    assert found.microseconds == {"1": [3e6, 2e6]}


def test_a_candidate_with_other_bits_than_its_order_promises_is_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within what rounding allows, but then a row's bits would depend on the batch."""
    nudge = torch.zeros(32).half()
    nudge[-1] = -(2**-11)
    found = tuned(monkeypatch, lambda la: GOOD + nudge * (la.programs == 264), A, A_WIDE, B)
    assert found.entry == ((ANY_ROWS, B),)
    assert "bits" in found.failures[A_WIDE]


def test_a_candidate_that_does_not_fit_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    def run(launch: DecodeLaunch) -> Tensor:
        if launch == B:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return GOOD

    found = tuned(monkeypatch, run, A, B)
    assert found.entry == ((ANY_ROWS, A),)
    assert "shared memory" in found.failures[B]
    assert "shared memory" in found.line()


def test_another_error_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(launch: DecodeLaunch) -> Tensor:
        if launch == B:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return GOOD

    with pytest.raises(RuntimeError, match="illegal memory access"):
        tuned(monkeypatch, run, A, B)


def test_a_default_that_is_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="default launch"):
        tuned(monkeypatch, lambda launch: GOOD + 1, A)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launches of each kind, on kernels of a few columns in Triton's interpreter."""
    shape = aot.ModelShape(32, 2, text_ids=50, semantic_ids=40, coarse_ids=48, codebook_size=32)
    monkeypatch.setitem(aot.SHAPES, "small", shape)
    monkeypatch.setattr(Device, "of", lambda device: Device("A GPU", (9, 0), 132))
    small = {
        "DecodeLaunch": [A, A_WIDE],
        "TileLaunch": [schedules.TileLaunch(32, 32, 16, 4, 1)],
        "DecodeAttentionLaunch": [schedules.DecodeAttentionLaunch(256, 64, 4, 4)],
        "FlashLaunch": [schedules.FlashLaunch(64, 64, 4, 2)],
    }
    monkeypatch.setattr(tune, "candidates_of", lambda key: small[key[0]])
    for kind, (first, *_) in zip(schedules.DEFAULTS, small.values(), strict=False):
        monkeypatch.setitem(schedules.DEFAULTS, kind, first)


@pytest.mark.usefixtures("tiny")
def test_kernels_are_tuned_and_the_table_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the clock is real: kernels in the interpreter, checks, the file, the choice."""
    path = tmp_path / "a-gpu.json"
    arguments = argparse.Namespace(
        sizes=["small"], dtype="float16", only="=4", out=path, budget_s=60.0, jobs=1
    )

    def timer(call: Callable[[], object]) -> float:
        trial = schedules._trial.get()
        return 1.0 if trial is not None and trial.launch == A_WIDE else 2.0

    assert tune.tune_all(arguments, CPU, timer) == 0
    table = Table.read(path)
    shapes = {key[2] for key in table.entries if key[0] == "DecodeLaunch"}
    assert shapes == {(96, 32), (32, 32), (128, 32), (32, 128), (40, 32), (48, 32)}
    key = ("DecodeLaunch", "torch.float16", (96, 32))
    assert table.find(key, 4) == A_WIDE
    assert "2e+06 -> 1e+06 us" in capsys.readouterr().out
    monkeypatch.setattr(schedules, "_table_of", lambda device: table)
    chosen = schedules.choose(DecodeLaunch, (96, 32), torch.empty(1).half(), rows=4)
    assert chosen == A_WIDE


@pytest.mark.usefixtures("tiny")
def test_no_time_leaves_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a-gpu.json"
    arguments = argparse.Namespace(
        sizes=["small"], dtype="float16", only="out + residual M=4", out=path, budget_s=-1.0, jobs=1
    )
    assert tune.tune_all(arguments, CPU, lambda call: 1.0) == 0
    assert "the time is over" in capsys.readouterr().out
    assert not path.exists()


COMPILE = """
from concurrent.futures import ThreadPoolExecutor
import torch
from bark_fast import kernels
from bark_fast.kernels.triton.schedules import DecodeLaunch, trying
from bench.cases.kernels import KernelCase
from bench.commands import tune
from helpers.stand_in_driver import stand_in_driver
from triton import knobs
from triton.runtime.jit import JITFunction

x = torch.zeros(4, 64, dtype=torch.bfloat16)
weight = torch.zeros(32, 64, dtype=torch.bfloat16)
run = lambda: kernels.fused_linear(x, weight, norm=(x[0], None), decode=True, impl="triton")
launches = [DecodeLaunch(block_n=16, block_k=64, num_warps=n) for n in (1, 2)]
tune.candidates_of = lambda key: launches
compiled, hits = JITFunction._do_compile, []

def compile_only(self, *args, **kwargs):
    compiled(self, *args, **kwargs)  # no GPU would launch it

with stand_in_driver():
    JITFunction._do_compile = compiled
    key = ("DecodeLaunch", "torch.bfloat16", (32, 64))
    tune.compile_all({key: [(KernelCase("x", run, run, 1), 4)]}, ThreadPoolExecutor(1))
    for kernel in (kernels.triton.linear_decode.decode_kernel,):
        kernel.device_caches.clear()  # as another process has it
    JITFunction._do_compile = compile_only
    knobs.compilation.listener = lambda **kwargs: hits.append(kwargs["cache_hit"])
    for launch in launches:
        with trying(launch):
            run()
print("hits", hits)
"""


def test_what_is_compiled_in_advance_is_what_is_launched(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = tmp_path / "script.py"
    script.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False,
        env={
            "PATH": "/usr/bin:/bin", "HOME": str(tmp_path),
            "TRITON_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONPATH": f"{root}:{root / 'tests'}",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 kernels compiled" in done.stdout
    assert "0 of them in vain" in done.stdout
    assert "hits [True, True]" in done.stdout
