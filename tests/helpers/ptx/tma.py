"""Copies of tiles by descriptors (TMA), and the mbarriers that tell when they have arrived.

A copy may write at any time between its issue and the wait for its barrier: what it brings may be
read only behind the wait, and its place must not be touched before. What lies outside of the tensor
arrives as zeros. (ISA, "Tensors" and "mbarrier".)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx.memory import Access, Memory, PtxError, SharedMemory
from helpers.ptx.parser import Instruction
from helpers.ptx.table import Threads, instruction

if TYPE_CHECKING:
    from helpers.ptx.cta import Cta

_UNIT = 16  # bytes that stay together in any layout
_WIDTH = {0: 16, 1: 32, 2: 64, 3: 128}  # bytes of a line, by the descriptor's kind of swizzle


@dataclass(frozen=True)
class TensorMap:
    """A descriptor of a matrix of 2-byte values.

    Attributes:
        start: of the matrix in `memory`, in bytes.
        shape: rows and columns. row_bytes: from one row to the next.
        box: rows and columns of a copy.
        swizzle: how a copy's lines lie in shared memory.
    """

    memory: Memory
    start: int
    shape: tuple[int, int]
    row_bytes: int
    box: tuple[int, int]
    swizzle: int

    def read(self, row: int, column: int, thread: int) -> np.ndarray:
        """Return a box as units uint16 [rows, units, 8]; zeros outside of the matrix."""
        per_unit = _UNIT // 2
        units = -(-self.box[1] // per_unit)
        rows, columns = row + np.arange(self.box[0]), column + per_unit * np.arange(units)
        if self.shape[1] % per_unit:
            raise PtxError("a descriptor of rows that are no whole units of 16 bytes")
        inside = ((rows >= 0) & (rows < self.shape[0]))[:, None] & (
            (columns >= 0) & (columns < self.shape[1])
        )
        found = np.zeros((self.box[0], units, per_unit), np.uint16)
        offsets = (self.start + rows[:, None] * self.row_bytes + 2 * columns[None, :])[inside]
        if len(offsets):
            found[inside] = self.memory.load(offsets, 2, per_unit, np.full(len(offsets), thread))
        return found

    def places(self, start: int) -> np.ndarray:
        """Return the shared address of each unit [rows, units] of a box."""
        width = self.box[1] * 2
        if self.swizzle and width != _WIDTH[self.swizzle]:
            raise PtxError(f"a box {width} bytes wide with a swizzle of {_WIDTH[self.swizzle]}")
        at = start + np.arange(self.box[0])[:, None] * width + np.arange(0, width, _UNIT)
        # As wgmma's descriptors have it: see `matrices.matrix_offsets`.
        return at ^ ((at >> 7 & (_WIDTH[self.swizzle] // _UNIT - 1)) << 4)


@dataclass
class Barrier:
    """An mbarrier: a phase ends when all have arrived and all expected bytes have come."""

    count: int
    phase: int = 0
    arrived: int = 0
    missing_bytes: int = 0
    copies: list[Access] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.arrived == self.count and self.missing_bytes == 0

    def turn(self) -> list[Access]:
        """Begin the next phase; return what has arrived."""
        done, self.copies = self.copies, []
        self.phase ^= 1
        self.arrived = 0
        return done


def _one(cta: Cta, threads: Threads) -> int:
    """Return the one thread that executes an instruction."""
    which = np.arange(len(cta.lanes)) if threads is None else np.nonzero(threads)[0]
    if len(which) != 1:
        raise PtxError(f"{len(which)} threads start what one should")
    return int(which[0])


def _barrier(cta: Cta, ins: Instruction, place: int, thread: int) -> Barrier:
    address = int(cta.address(ins.operands[place], "u32")[thread])
    if address not in cta.barriers:
        raise PtxError(f"no mbarrier was made at {address}")
    return cta.barriers[address]


@instruction("elect")
def _elect(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """Choose the first lane of each warp."""
    cta.whole_warps(threads)
    lane, chosen = str(ins.operands[0]).split("|")
    cta.write(lane, np.zeros(len(cta.lanes), np.uint32), threads)
    cta.write(chosen, cta.lanes == 0, threads)


@instruction("mbarrier.init")
def _make_barrier(cta: Cta, ins: Instruction, threads: Threads) -> None:
    thread = _one(cta, threads)
    address = int(cta.address(ins.operands[0], "u32")[thread])
    cta.barriers[address] = Barrier(int(ins.operands[1]))


@instruction("mbarrier.inval")
def _end_barrier(cta: Cta, ins: Instruction, threads: Threads) -> None:
    thread = _one(cta, threads)
    if _barrier(cta, ins, 0, thread).copies:
        raise PtxError("an mbarrier ends while a copy is in flight")
    del cta.barriers[int(cta.address(ins.operands[0], "u32")[thread])]


@instruction("mbarrier.arrive.expect_tx")
def _expect(cta: Cta, ins: Instruction, threads: Threads) -> None:
    barrier = _barrier(cta, ins, 1, _one(cta, threads))
    barrier.arrived += 1
    barrier.missing_bytes += int(ins.operands[2])


@instruction("mbarrier.try_wait")
def _try_wait(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """Wait until the phase of this parity is over."""
    if threads is not None and (threads != cta.live).any():
        raise PtxError("an mbarrier that only some threads wait for")
    result, _, parity = ins.operands
    thread = int(np.nonzero(cta.live)[0][0])
    barrier = _barrier(cta, ins, 1, thread)
    parities = cta.everywhere(cta.read(parity, "u32"))[cta.live]
    if (parities != parities[0]).any():
        raise PtxError("a wait for two phases at once")
    if barrier.phase == parities[0]:
        if not barrier.is_complete:
            raise PtxError(
                f"a wait that never ends: {barrier.count - barrier.arrived} have not arrived, "
                f"{barrier.missing_bytes} bytes were not asked for"
            )
        for copy in barrier.turn():
            cta.shared.end_awaited_copy(copy)
    cta.write(result, np.ones(len(cta.lanes), bool), threads)


@instruction("cp.async.bulk")
def _copy_tile(cta: Cta, ins: Instruction, threads: Threads) -> None:
    thread = _one(cta, threads)
    if ins.words[3:5] != ("tensor", "2d"):
        raise NotImplementedError(f"{ins}: only copies of matrices are in the table")
    to, source, _ = ins.operands
    assert isinstance(source, tuple)
    register, (column, row) = source
    number = int(cta.read(register, "u64")[thread])
    tensor_map = cta.memory.tensor_maps[number]
    where = (int(cta.everywhere(cta.read(x, "s32"))[thread]) for x in (row, column))
    units = tensor_map.read(*where, int(cta.numbers[thread]))
    start = int(cta.address(to, "u32")[thread])
    offsets = tensor_map.places(start).ravel() - SharedMemory.BASE
    numbers = np.full(len(offsets), cta.numbers[thread])
    copy = cta.shared.begin_copy(offsets, units.reshape(-1, _UNIT // 2), numbers)
    barrier = _barrier(cta, ins, 2, thread)
    barrier.copies.append(copy)
    barrier.missing_bytes -= units.nbytes
