"""Figures of the code that recorded launches compile to, without a GPU."""

from __future__ import annotations

from typing import Any

from bark_fast.kernels import aot
from bark_fast.kernels.aot import Launch
from bench.cases.recording import independent
from bench.cases.time_model import Code, read_ptx

# An alternative's other tiles are taken to cost the instructions of today's.
_TILES = ("BLOCK_", "SPLIT", "SLICES", "STAGES", "PDL", "M")


class CompiledCode:
    """Compiles launches for a GPU, each kind once: tiles and grids are not looked at.

    Args:
        capability: the GPU's; Ada's GPUs get the code of sm_80.
    """

    def __init__(self, capability: int) -> None:
        self._target = 90 if capability >= 90 else 80
        self._known: dict[Any, Code] = {}

    def __call__(self, launch: Launch) -> Code:
        if self._target < aot.PDL_TARGET:
            launch = independent(launch)
        kind = (
            launch.name,
            tuple(
                (name, value)
                for name, value in launch.constants.items()
                if not name.startswith(_TILES)
            ),
        )
        if kind not in self._known:
            self._known[kind] = read_ptx(aot.build(launch, self._target).asm["ptx"])
        return self._known[kind]
