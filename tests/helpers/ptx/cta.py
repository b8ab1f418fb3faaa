"""All threads of one program (CTA), in lock step.

Threads that branch apart are groups, each at its own instruction. The group that is furthest behind
runs until it meets another, so that they join again where their ways do. One that comes to a
barrier, or to what a warp does together, before others (in the next round of a loop, say) waits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# (The first three enter their instructions into the table.)
from helpers.ptx import arithmetic, instructions, matrices, values  # noqa: F401
from helpers.ptx.memory import (
    WARP,
    Access,
    Clock,
    GlobalMemory,
    Memory,
    PtxError,
    SharedMemory,
)
from helpers.ptx.parser import Address, Operand, Program
from helpers.ptx.table import Threads, steps_of

# Instructions of whole warps, or of all threads.
_TOGETHER = {"bar", "shfl", "redux", "mma", "ldmatrix", "stmatrix", "wgmma"}


@dataclass(frozen=True)
class Place:
    """A CTA of a launch: its index in the grid, the grid, and its number in the running order."""

    index: tuple[int, int, int]
    grid: tuple[int, int, int]
    number: int = 0


class Cta:
    """The state of one CTA.

    Args:
        arguments: the bits of the kernel's parameters; those that are left out are null pointers.
        clock: finds races, of this CTA and with those that ran before it in this launch.
    """

    def __init__(
        self, program: Program, arguments: Sequence[int], place: Place, memory: GlobalMemory, *,
        shared_size: int, clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.program, self.memory, self.clock, self.place = program, memory, clock, place
        self.shared = SharedMemory(shared_size, clock)
        # What other CTAs did before this one met them; takes effect at the next barrier.
        self._acquired: np.ndarray | None = None
        count = program.threads
        self.numbers = place.number * count + np.arange(count, dtype=np.int32)
        self.lanes = np.arange(count) % WARP
        self.live = np.ones(count, bool)
        # Groups of cp.async and wgmma that were not waited for; the last one is still open.
        self.copies: list[list[Access]] = [[]]
        self.products: list[list[Access]] = [[]]
        self.kernel_pending = any(
            i.words == ("griddepcontrol", "wait") for i in program.instructions
        )
        self._registers: dict[str, np.ndarray] = self._presets(arguments)

    def _presets(self, arguments: Sequence[int]) -> dict[str, np.ndarray]:
        count = self.program.threads

        def everywhere(value: int, dtype: type = np.uint32) -> np.ndarray:
            return np.full(count, value, dtype)

        found = {"%tid.x": np.arange(count, dtype=np.uint32), "%ntid.x": everywhere(count)}
        found["%laneid"] = self.lanes.astype(np.uint32)
        for axis, index, size in zip("xyz", self.place.index, self.place.grid, strict=True):
            found[f"%ctaid.{axis}"], found[f"%nctaid.{axis}"] = everywhere(index), everywhere(size)
        found["global_smem"] = everywhere(SharedMemory.BASE)
        missing = [0] * (len(self.program.parameters) - len(arguments))
        for (name, _), bits in zip(self.program.parameters, [*arguments, *missing], strict=True):
            found[name] = everywhere(bits, np.uint64)
        return found

    # Registers ------------------------------------------------------------------------------------

    def read(self, operand: Operand, kind: str) -> np.ndarray:
        """Return an operand's values as the PTX type `kind`; a constant has no dimension."""
        if isinstance(operand, int):
            return values.immediate(operand, kind)
        bits = self._registers.get(operand)  # type: ignore[arg-type]
        if bits is None:
            raise PtxError(f"{operand} is read before it is written")
        return values.decode(bits, kind)

    def write(self, register: Operand, bits: np.ndarray, threads: Threads) -> None:
        """Set a register of these threads; what the others never set is all ones, or true."""
        if register == "_":
            return
        assert isinstance(register, str)
        dtype = _register_dtype(self.program, register.rstrip("0123456789"))
        bits = bits.astype(dtype, copy=False)
        if threads is not None:
            never_set = 1 if dtype.kind == "b" else np.iinfo(dtype).max
            bits = np.where(threads, bits, self._registers.get(register, dtype.type(never_set)))
        elif bits.ndim == 0:
            bits = np.full(self.live.shape, bits)
        self._registers[register] = bits

    def everywhere(self, array: np.ndarray) -> np.ndarray:
        """Return a constant or an array as an array of all threads."""
        return array if array.ndim else np.full(self.live.shape, array)

    def address(self, operand: Operand, kind: str) -> np.ndarray:
        """Return [base + offset] as int64 [T]."""
        assert isinstance(operand, Address), "an address is needed here"
        return self.read(operand.base, kind).astype(np.int64) + operand.offset

    # Memory ---------------------------------------------------------------------------------------

    def tensor_parts(
        self, addresses: np.ndarray
    ) -> list[tuple[np.ndarray | slice, Memory, np.ndarray]]:
        """Return the tensors at these global addresses, which must be there to be used."""
        parts = self.memory.parts(addresses)
        for _, memory, _ in parts:
            if memory.dependent and self.kernel_pending:
                raise PtxError(f"an access to {memory.name} before griddepcontrol.wait")
        return parts

    # Barriers -------------------------------------------------------------------------------------

    def barrier(self, threads: Threads) -> None:
        """Order all that the CTA did before all that it will do."""
        here = np.ones_like(self.live) if threads is None else threads
        if (here != self.live).any():
            raise PtxError(f"a barrier that {here.sum()} of {self.live.sum()} threads reach")
        if self.clock is not None:
            self.clock.since[self.numbers] = self.clock.now
            if self._acquired is not None:
                np.maximum(self.clock.since, self._acquired, out=self.clock.since)
                self._acquired = None

    def meet(self, counter: int) -> None:
        """Tell other CTAs what this one did before its last barrier, and hear what they told."""
        if self.clock is not None:
            told = self.clock.releases.setdefault(counter, np.zeros_like(self.clock.since))
            np.maximum(told, self.clock.since, out=told)
            heard = told if self._acquired is None else np.maximum(told, self._acquired)
            self._acquired = heard.copy()

    def warp_barrier(self, threads: Threads) -> None:
        """Order all that each warp of these threads did before all that it will do."""
        warps = self.whole_warps(threads)
        if self.clock is not None:
            first = self.numbers[0] // WARP
            self.clock.warp_since[first + np.nonzero(warps)[0]] = self.clock.now

    def whole_warps(self, threads: Threads) -> np.ndarray:
        """Return which warps are here, bool [warps]; none may be here in part."""
        here = np.ones_like(self.live) if threads is None else threads
        by_warp = here.reshape(-1, WARP)
        if (by_warp.any(axis=1) != by_warp.all(axis=1)).any():
            raise PtxError("an instruction of whole warps that a part of a warp reaches")
        return by_warp.all(axis=1)

    # Control --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Execute the program to its end; a fault names its instruction."""
        groups = {0: self.live.copy()}
        if self.clock is not None:
            self.clock.forget()
        with np.errstate(all="ignore"):
            waiting: set[int] = set()  # where groups have come to a barrier before others
            while groups:
                start = min(groups.keys() - waiting or waiting)
                waiting.discard(start)
                here = groups.pop(start)
                self._run_group(start, here, groups, waiting)

    def _run_group(
        self, at: int, here: np.ndarray, groups: dict[int, np.ndarray], waiting: set[int]
    ) -> None:
        """Run threads until they end, part, must wait, or reach the place of another group."""
        steps = steps_of(self.program)

        def next_group() -> int:
            return min((place for place in groups if place >= at), default=len(steps))

        meeting = next_group()
        alone = bool(here.all())
        while at < meeting:
            instruction, step = steps[at]
            at += 1
            if self.clock is not None:
                self.clock.now += 1
            threads = None if alone else here
            if instruction.guard:
                chosen = here & (self.read(instruction.guard, "pred") ^ instruction.negated)
                threads = None if chosen.all() else chosen
                if threads is not None and not chosen.any():
                    continue
            if instruction.words[0] in _TOGETHER and groups.keys() - waiting:
                waiting.add(at - 1)
                groups[at - 1] = here
                return
            if step is not None:
                try:
                    step(self, threads)
                except PtxError as fault:
                    raise PtxError(f"{instruction}: {fault}") from None
                continue
            leaving = here if threads is None else threads
            if instruction.words[0] == "bra":
                target = self.program.labels[str(instruction.operands[0])]
                groups[target] = groups.get(target, np.zeros_like(here)) | leaving
            else:
                self.live &= ~leaving
            here = here & ~leaving
            if not here.any():
                return
            alone = False
            meeting = next_group()
        if at < len(steps):
            groups[at] = groups.get(at, np.zeros_like(here)) | here


@functools.lru_cache(maxsize=4096)
def _register_dtype(program: Program, letters: str) -> np.dtype:
    kind = program.register_types[letters]
    return np.dtype(bool) if kind == "pred" else values.UNSIGNED[values.size_of(kind)]
