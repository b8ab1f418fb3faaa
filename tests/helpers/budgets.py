"""Figures of the compiled kernels that decide their speed, and the table of what they may be.

    PYTHONPATH=tests python -m helpers.budgets > tests/kernels/budgets.txt

compiles bark's launches for sm_90, reads the machine code (SASS) and prints the table. The columns:

* regs, instr: registers a thread, and instructions, without those that pad the code.
* programs: how many fit on one multiprocessor at once.
* groups: groups of asynchronous copies (`cp.async`) that a program has in flight at most.
* KiB: what a program has requested from memory when it first waits for its other threads. What
  comes by descriptors (TMA) is counted in neither; its depth is the launch's number of stages.
* early: KiB that it requests before it waits for the kernel before (`griddepcontrol.wait`).
* signal: instructions before it lets the next kernel start (`griddepcontrol.launch_dependents`).

More is worse for regs, instr and signal, and better for the others. Another version of Triton makes
other code, so the table is of one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

TARGET = 90
# One multiprocessor of sm_90 (CUDA C++ Programming Guide, table of compute capabilities). The
# system takes 1 KiB of shared memory of each program.
REGISTERS, THREADS, PROGRAMS, SHARED = 65536, 2048, 32, 228 * 1024
SHARED_OF_SYSTEM = 1024
WARP = 32


@dataclass(frozen=True)
class Figures:
    """One row of the table; `early` and `signal` are None without programmatic launch."""

    regs: int
    instr: int
    programs: int
    groups: int
    kib: float
    early: float | None = None
    signal: int | None = None

    def cells(self) -> list[str]:
        return ["-" if value is None else f"{value:g}" for value in vars(self).values()]


LESS_IS_BETTER = ("regs", "instr", "signal")
SLACK = {"instr": 0.03, "signal": 0.1}  # parts of a budget that are not worth a word
HEADER = f"{'case and kernel':<58}" + "".join(f"{f.name:>9}" for f in fields(Figures))


def programs_at_once(registers: int, threads: int, shared: int) -> int:
    """Return the programs that fit on a multiprocessor: registers come in 256 for each warp."""
    warps = -(-threads // WARP)
    of_warp = -(-registers * WARP // 256) * 256
    return min(
        REGISTERS // of_warp // warps,
        SHARED // (shared + SHARED_OF_SYSTEM),
        THREADS // (warps * WARP),
        PROGRAMS,
    )


def instructions(sass: str) -> list[str]:
    """Return the instructions of nvdisasm's output, without predicates and what pads the end."""
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*?)\s*;", sass)
    while found and (found[-1] == "NOP" or found[-1].startswith("BRA")):
        found.pop()
    return found


def figures(sass: str, *, registers: int, threads: int, shared: int) -> Figures:
    """Return the figures of a kernel from its machine code."""
    code = instructions(sass)
    first_wait = _index(code, r"BAR\.|DEPBAR\.|WARPGROUP\.DEPBAR", default=len(code))
    kernel_wait = _index(code, r"ACQBULK", default=None)
    signal = _index(code, r"PREEXIT", default=None)
    return Figures(
        regs=registers,
        instr=len(code),
        programs=programs_at_once(registers, threads, shared),
        groups=_most_groups(code),
        kib=_requested(code[:first_wait], threads),
        early=None if kernel_wait is None else _requested(code[:kernel_wait], threads),
        signal=signal,
    )


def _index(code: list[str], pattern: str, *, default: int | None) -> int | None:
    return next((i for i, text in enumerate(code) if re.match(pattern, text)), default)


def _requested(code: list[str], threads: int) -> float:
    """Return the KiB that a program's threads load, in registers or in shared memory."""
    total = 0
    for text in code:
        load = re.match(r"(?:LDG|LDGSTS)(\.\S+)", text)
        if load:
            width = re.search(r"\.(?:[US]?(8|16)|(64|128))(?:\.|$)", load[1])
            total += int(next(filter(None, width.groups()))) // 8 if width else 4
    return total * threads / 1024


def _most_groups(code: list[str]) -> int:
    """Return the most groups of cp.async in flight, as the code is written; loops count once."""
    flying = most = 0
    for text in code:
        wait = re.match(r"DEPBAR\.LE SB0, 0x([0-9a-f]+)", text)
        if text.startswith("LDGDEPBAR"):
            flying += 1
        elif wait:
            flying = min(flying, int(wait[1], 16))
        most = max(most, flying)
    return most


def compare(name: str, measured: Figures, budget: Figures) -> list[str]:
    """Return what is worse than the budget, and what is better: that is to be entered, and kept."""
    told = []
    for figure in fields(Figures):
        got, allowed = getattr(measured, figure.name), getattr(budget, figure.name)
        if got is None or allowed is None:
            if got != allowed:
                told.append(f"{name}: {figure.name} is {got}, and the budget's is {allowed}")
            continue
        worse_by = got - allowed if figure.name in LESS_IS_BETTER else allowed - got
        if abs(worse_by) > SLACK.get(figure.name, 0.0) * allowed:
            verdict = "worse than its budget, " if worse_by > 0 else "better; tighten the budget, "
            told.append(f"{name}: {figure.name} {got:g} is {verdict}{allowed:g}")
    return told


def read_table(text: str) -> dict[str, Figures]:
    """Return the rows of a table by the names of their cases."""
    rows = {}
    for line in text.splitlines()[2:]:
        *name, regs, instr, programs, groups, kib, early, signal = line.split()
        rows[" ".join(name)] = Figures(
            int(regs), int(instr), int(programs), int(groups), float(kib),
            None if early == "-" else float(early), None if signal == "-" else int(signal),
        )  # fmt: skip
    return rows


def version_of(text: str) -> str:
    """Return the Triton that a table is of, as in "3.9"."""
    return text.splitlines()[0].split()[1]


def measure() -> Iterator[tuple[str, Figures]]:
    """Compile every launch of bark in bfloat16; yield its name and figures."""
    from bark_fast.kernels import aot

    for launch, case, _, _ in aot.all_launches(["large"], ["bfloat16"], [TARGET]):
        if re.search(r" M=\d+$", case):
            continue  # without programmatic launch: what older GPUs run
        code = aot.build(launch, TARGET)
        usage = aot.resource_usage(code.asm["cubin"])
        assert not usage["STACK"] + usage["LOCAL"], f"{case} spills"
        yield (
            f"{case.removeprefix('large ')} ({launch.name})",
            figures(
                _disassemble(code.asm["cubin"]), registers=usage["REG"],
                threads=code.metadata.num_warps * WARP, shared=code.metadata.shared,
            ),
        )  # fmt: skip


def _disassemble(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-ndf", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout


def main() -> None:
    import triton

    print(f"triton {'.'.join(triton.__version__.split('.')[:2])}, sm_{TARGET}, bfloat16")
    print(HEADER)
    for name, row in measure():
        print(f"{name:<58}" + "".join(f"{cell:>9}" for cell in row.cells()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
