"""The table of instructions: from an opcode's first words to what it does.

The modules `arithmetic`, `instructions` and `matrices` enter theirs when they are imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from helpers.ptx.parser import Instruction, Program

if TYPE_CHECKING:
    from helpers.ptx.cta import Cta

Threads: TypeAlias = np.ndarray | None
"""The threads that execute an instruction, bool [T]; None for all."""

Step: TypeAlias = Callable[["Cta", Threads], None]
"""One instruction, ready to be executed."""

Execute: TypeAlias = Callable[["Cta", Instruction, Threads], None]

TABLE: dict[str, Callable[[Instruction], Step]] = {}


def instruction(name: str) -> Callable[[Execute], Execute]:
    """Enter a function into the table for the opcodes that begin with `name`."""

    def enter(execute: Execute) -> Execute:
        TABLE[name] = lambda ins: lambda cta, threads: execute(cta, ins, threads)
        return execute

    return enter


@functools.lru_cache(maxsize=64)
def steps_of(program: Program) -> list[tuple[Instruction, Step | None]]:
    """Return each instruction with what it does; None for those that move threads (bra, ret)."""
    return [(i, None if i.words[0] in ("bra", "ret") else _step(i)) for i in program.instructions]


def _step(ins: Instruction) -> Step:
    for words in (ins.words[:3], ins.words[:2], ins.words[:1]):
        if ".".join(words) in TABLE:
            return TABLE[".".join(words)](ins)
    raise NotImplementedError(f"{ins}: this instruction is not in the table")
