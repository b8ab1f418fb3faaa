"""The compiled kernels keep the figures that decide their speed; `helpers.budgets` says which.

A change that makes a kernel worse fails here, and so does one that makes it better, until the new
figure stands in `budgets.txt`:

    PYTHONPATH=tests python -m helpers.budgets > tests/kernels/budgets.txt
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.budgets import Figures, compare, figures, programs_at_once, read_table, version_of

TABLE = Path(__file__).with_name("budgets.txt")
TESTS = Path(__file__).parent.parent


@pytest.mark.slow
def test_bark_keeps_its_budgets() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "helpers.budgets"], capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # with any Triton: nothing spills
    measured, budgets = read_table(done.stdout), read_table(TABLE.read_text())
    changed = measured.keys() ^ budgets.keys()
    assert not changed, "other kernels than in budgets.txt; write it anew"
    if version_of(done.stdout) == version_of(TABLE.read_text()):
        told = [line for name in budgets for line in compare(name, measured[name], budgets[name])]
        assert not told, "\n".join(told)


def test_dependents_ask_for_their_weights_first() -> None:
    """With programmatic dependent launch, 16 rows of W are on their way before the wait, and the
    next kernel may start at once."""
    budgets = read_table(TABLE.read_text())
    dependent = {name: row for name, row in budgets.items() if " pdl " in name}
    assert len(dependent) >= 15
    for name, row in dependent.items():
        assert row.early is not None
        assert row.signal is not None
        assert row.signal < 20, name
        if "linear" in name:
            assert row.early >= 32, name
            if "M=1 " in name:
                assert row.programs >= 4, "two of this kernel and two of the next"


# Figures by hand ----------------------------------------------------------------------------------

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P1 LDG.E.128 R88, desc[UR8][R64.64] ;
        /*0020*/               @P0 LDG.E.U16 R3, desc[UR8][R64.64+0x100] ;
        /*0030*/                   ACQBULK ;
        /*0040*/                   LDG.E R4, desc[UR8][R68.64] ;
        /*0050*/                   PREEXIT ;
        /*0060*/                   LDGSTS.E.BYPASS.128 [R80], desc[UR8][R12.64+-0x800], !P1 ;
        /*0070*/                   LDGDEPBAR ;
        /*0080*/              @!P4 LDGSTS.E.64 [R34+0xc000], desc[UR12][R16.64], P1 ;
        /*0090*/                   LDGDEPBAR ;
        /*00a0*/                   DEPBAR.LE SB0, 0x1 ;
        /*00b0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00c0*/                   LDG.E.64 R4, desc[UR8][R68.64] ;
        /*00d0*/                   LDGDEPBAR ;
        /*00e0*/                   LDGDEPBAR ;
        /*00f0*/                   EXIT ;
.L_x_0:
        /*0100*/                   BRA `(.L_x_0);
        /*0110*/                   NOP;
"""


def test_figures_of_machine_code() -> None:
    got = figures(SASS, registers=99, threads=256, shared=32768)
    assert got == Figures(
        regs=99, instr=16, programs=2, groups=3, kib=(16 + 2 + 4 + 16 + 8) / 4, early=18 / 4,
        signal=5,
    )  # fmt: skip
    without = figures(SASS.replace("ACQBULK", "NOP").replace("PREEXIT", "NOP"), registers=32,
                      threads=32, shared=0)  # fmt: skip
    assert (without.early, without.signal) == (None, None)
    assert without.programs == 32, "a multiprocessor has no more places"


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "programs"),
    [
        (99, 256, 32768, 2),  # 104 registers x 256 threads are 26 624 of 65 536
        (96, 256, 32768, 2),
        (80, 256, 32768, 3),
        (40, 256, 65536, 3),  # 65 KiB of 228
        (128, 128, 99_328, 2),
        (24, 64, 0, 32),
        (255, 1024, 0, 0),  # such a kernel could not be launched
    ],
)
def test_programs_of_a_multiprocessor(
    registers: int, threads: int, shared: int, programs: int
) -> None:
    assert programs_at_once(registers, threads, shared) == programs


def test_a_change_is_told_both_ways() -> None:
    budget = Figures(regs=100, instr=1000, programs=2, groups=4, kib=64.0, early=32.0, signal=60)
    assert compare("x", budget, budget) == []
    assert compare("x", replace(budget, instr=1020, signal=62), budget) == []
    worse = replace(budget, regs=101, programs=1, early=16.0)
    assert compare("x", worse, budget) == [
        "x: regs 101 is worse than its budget, 100",
        "x: programs 1 is worse than its budget, 2",
        "x: early 16 is worse than its budget, 32",
    ]
    better = replace(budget, instr=900, groups=5)
    assert [line.split(" is ")[1] for line in compare("x", better, budget)] == [
        "better; tighten the budget, 1000", "better; tighten the budget, 4",
    ]  # fmt: skip
    assert compare("x", replace(budget, signal=None), budget) == [
        "x: signal is None, and the budget's is 60"
    ]
