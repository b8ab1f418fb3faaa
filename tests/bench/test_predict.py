"""The model of time, in pieces, against figures by hand.

What needs Triton's launcher runs in a process without its interpreter. That what is recorded is
what an engine launches is tested in `tests/kernels/test_aot.py`, where there is such an engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bark_fast.kernels.aot import Launch
from bench.cases.aims import measured_on
from bench.cases.gpus import GPU
from bench.cases.recording import Operation
from bench.cases.time_model import (
    Assumptions,
    Code,
    TimeModel,
    l2_bytes,
    programs,
    read_ptx,
    rounds_of_code,
    rounds_of_memory,
    tiles,
)
from bench.harness.results import Case, Spread
from helpers.made_up_results import results

ROOT = Path(__file__).parents[2]
# Round figures: 1 TB/s, 100 TFLOP/s, 10 multiprocessors at 1 GHz.
CHIP = GPU("chip", 90, 1e12, 1e14, 10, 1e9, "made up")
ASSUMED = Assumptions(bandwidth_share=1.0, l2_bytes_per_cycle=100.0)  # L2: 1 TB/s


class _Kernel:
    __module__ = "kernels.made_up"
    __name__ = "kernel"


def launch(*grid: int, warps: int = 8, pdl: bool = False, **constants: Any) -> Launch:
    options = {"num_warps": warps, **({"launch_pdl": True} if pdl else {})}
    kernel: Any = _Kernel()
    return Launch(kernel, {}, constants, (), options, grid)


def product(*launches: Launch, rows: int = 1, decode: bool = True, count: int = 1) -> Operation:
    return Operation("product", rows, 2_000_000, 4_000_000, decode, launches, count=count)


FC2 = {"N": 1024, "K": 4096, "BLOCK_N": 16, "BLOCK_M": 16, "BLOCK_K": 1024}


def test_what_a_product_does() -> None:
    loop = launch(64, 4, **FC2)
    op = product(loop, rows=50)  # four tiles of 16 rows
    assert tiles(op, loop) == 256
    assert rounds_of_memory(op, loop) == 4
    assert rounds_of_code(op, loop) == 3, "the first round is before the loop"
    assert l2_bytes(op, loop) == 256 * (16 + 16) * 4096 * 2

    split = launch(64, 4, **{k: v for k, v in FC2.items() if k != "BLOCK_M"})
    op = product(split, rows=50)  # programs share K, and go through the rows by eights
    assert tiles(op, split) == 64
    assert rounds_of_memory(op, split) == 1
    assert rounds_of_code(op, split) == 7
    assert l2_bytes(op, split) == 64 * (16 + 50) * 4096 * 2

    persistent = launch(132, N=3072, K=1024, BLOCK_M=256, BLOCK_N=128, BLOCK_K=64)
    op = product(persistent, rows=8192, decode=False)
    assert tiles(op, persistent) == 32 * 24
    assert rounds_of_memory(op, persistent) == 1


def test_what_attention_does() -> None:
    of = launch(2, 16, 4, warps=4, HEADS=16, SPLIT=256, BLOCK_KV=64)
    op = Operation("attention", 2, 1, 1, True, (of,), keys=700)
    assert programs(op, of) == 2 * 16 * 3, "the fourth split has no keys"
    assert rounds_of_code(op, of) == 4
    assert rounds_of_memory(op, of) == 1


def test_time_of_an_operation() -> None:
    """1.3 us gap, four trips of 0.7, one of 0.3 to L2, and the longest part."""
    loop = launch(64, 1, **FC2)
    op = product(loop)
    model = TimeModel(CHIP, lambda of: Code(instructions=500, looped=100), ASSUMED)
    parts = model.parts_us(op)
    assert parts["memory"] == pytest.approx(2.0)  # 2 MB at 1 TB/s
    assert parts["l2"] == pytest.approx(64 * 17 * 8192 / 1e6)  # at 1 TB/s
    assert parts["flops"] == pytest.approx(4e6 / (1e14 * 0.3) * 1e6)
    # 7 programs of 8 warps on the fullest multiprocessor, 14 warps a scheduler; 700 instructions.
    assert parts["issue"] == pytest.approx(700 * 14 / 1e3)
    assert model.operation_us(op) == pytest.approx(1.3 + 4 * 0.7 + 0.3 + 9.8)
    assert model.total_us([product(loop, count=24), op]) == pytest.approx(25 * 14.2)
    assert model.launched_us([op]) == 17.0, "the host is slower"


def test_a_dependent_launch_hides_a_trip() -> None:
    op = product(launch(64, 1, pdl=True, **FC2))
    model = TimeModel(CHIP, assumed=ASSUMED)
    assert model.gap_us(op.launches[0]) == 0.6
    assert model.waits_us(op) == pytest.approx(3 * 0.7 + 0.3)


def test_parts_of_attention_are_waited_for() -> None:
    of = launch(1, 16, 4, warps=4, HEADS=16, SPLIT=256, BLOCK_KV=64)
    model = TimeModel(CHIP, assumed=ASSUMED)
    one, three = (Operation("attention", 1, 1, 1, True, (of,), keys=keys) for keys in (200, 700))
    assert model.waits_us(one) == pytest.approx(0.7 + 3 * 0.3)
    assert model.waits_us(three) == pytest.approx(0.7 + 6 * 0.3)


def test_a_tile_too_many_takes_a_whole_round() -> None:
    of = launch(11, 1, N=128, K=64, BLOCK_M=128, BLOCK_N=128, BLOCK_K=64)
    op = product(of, rows=11 * 128, decode=False)
    model = TimeModel(CHIP, assumed=ASSUMED)
    assert model.flops_share(op) == pytest.approx(0.5 * 11 / 20)
    assert model.parts_us(op)["issue"] == 0


PTX = """
.visible .entry kernel(
)
{
	.reg .b32 	%r<3>;
	mov.u32 	%r1, 0;
$L__BB0_1:
	add.s32 	%r1, %r1, 1;
$L__BB0_2:
	@%p1 mul.lo.s32 	%r2, %r1, %r1;
	@!%p2 bra 	$L__BB0_2;
	bra.uni 	$L__BB0_1;
	@%p3 bra 	$L__BB0_3;
$L__BB0_3:
	ret;
}
"""


def test_loops_are_counted_once() -> None:
    code = read_ptx(PTX)
    assert code == Code(instructions=7, looped=4)
    assert code.executed(3) == 7 + 2 * 4


def test_measured_values_are_found_by_the_gpus_name(tmp_path: Path) -> None:
    case = Case("semantic decode after 700, B=1", Spread.of([0.5]), {"step_without_look_s": 3e-4})
    rate = Case("64 mixed requests", Spread.of([1.0]), {"audio_s_per_s": 120.0})
    folder = tmp_path / "nvidia-h200"
    results("stages", [case], size="large").write(folder / "stages.json")
    results("throughput", [rate], size="large").write(folder / "throughput.json")
    (tmp_path / "nvidia-rtx-4090").mkdir()
    assert measured_on(tmp_path, "H200", "large", case.name) == pytest.approx(300)
    assert measured_on(tmp_path, "H200", "large", rate.name) == 120
    assert measured_on(tmp_path, "H200", "small", case.name) is None
    assert measured_on(tmp_path, "RTX 4090", "large", case.name) is None


# The whole ---------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_predictions_are_a_table() -> None:
    printed = run(
        "-m", "bench", "predict", "--gpus", "H200", "L4", "--sizes", "large",
        "--rows", "1", "64", "--requests", "1",
    )  # fmt: skip
    assert "host launch us 17" in printed
    figures = {line[:42].strip(): line[42:].split() for line in printed.splitlines()}
    h200, _, l4, measured = figures["semantic decode after 700, B=1, us"]
    assert 130 < float(h200) < 1000, "not less than the weights take to read"
    assert 604e6 / 0.3e12 * 1e6 < float(l4) < 5000
    assert measured == "-" or float(measured) > 0
    assert "PDL off" in printed
    assert "24 x attention" in printed
