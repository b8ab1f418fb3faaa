"""Instructions other than arithmetic and matrices: moves, memory, copies, barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx.memory import WARP, Access, PtxError, SharedMemory
from helpers.ptx.parser import Instruction
from helpers.ptx.table import Threads, instruction
from helpers.ptx.values import UNSIGNED, encode, size_of

if TYPE_CHECKING:
    from helpers.ptx.cta import Cta


# Moves --------------------------------------------------------------------------------------------


@instruction("mov")
def _move(cta: Cta, ins: Instruction, threads: Threads) -> None:
    destination, source = ins.operands
    kind = ins.words[-1]
    if isinstance(destination, tuple):
        part = UNSIGNED[size_of(kind) // len(destination)]
        bits = np.ascontiguousarray(cta.everywhere(cta.read(source, kind))).view(part)
        for i, register in enumerate(destination):
            cta.write(register, bits[i :: len(destination)], threads)
    elif isinstance(source, tuple):
        part = f"b{8 * size_of(kind) // len(source)}"
        bits = np.stack([cta.everywhere(cta.read(x, part)) for x in source], axis=1)
        cta.write(destination, bits.view(UNSIGNED[size_of(kind)])[:, 0], threads)
    else:
        cta.write(destination, encode(cta.read(source, kind), kind), threads)


@instruction("cvta")
def _convert_address(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """Make an address of parameters a generic one: here they are the same."""
    _move(cta, ins, threads)


@instruction("shfl")
def _shuffle(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """Read another lane's register; lanes outside the segment that `clamp` tells get their own."""
    destination, source, by, clamp, _ = ins.operands
    cta.whole_warps(threads)
    lane, segments = cta.lanes, cta.read(clamp, "s32")
    segment = (segments >> 8) & 31
    last = (lane & segment) | (segments & 31 & ~segment)
    first, step = lane & segment, cta.read(by, "s32")
    mode = ins.words[2]
    other = {
        "bfly": lane ^ step, "idx": first | (step & ~segment), "up": lane - step,
        "down": lane + step,
    }[mode]  # fmt: skip
    inside = other >= last if mode == "up" else other <= last
    warp = np.arange(len(lane)) - lane
    bits = cta.everywhere(cta.read(source, "b32"))[warp + np.where(inside, other, lane)]
    cta.write(destination, bits, threads)


@instruction("redux")
def _reduce(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """Reduce a register over each warp."""
    cta.whole_warps(threads)
    kind = ins.words[-1]
    reduce = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
        "or": np.bitwise_or, "xor": np.bitwise_xor,
    }[ins.words[2]]  # fmt: skip
    by_warp = cta.everywhere(cta.read(ins.operands[1], kind)).reshape(-1, WARP)
    result = reduce.reduce(by_warp, axis=1, dtype=by_warp.dtype)
    cta.write(ins.operands[0], encode(np.repeat(result, WARP), kind), threads)


# Memory -------------------------------------------------------------------------------------------


def _which(cta: Cta, threads: Threads) -> np.ndarray:
    return np.arange(len(cta.lanes)) if threads is None else np.nonzero(threads)[0]


@instruction("ld.param")
def _load_parameter(cta: Cta, ins: Instruction, threads: Threads) -> None:
    destination, address = ins.operands
    cta.write(destination, encode(cta.read(address.base, ins.words[-1]), ins.words[-1]), threads)


@instruction("ld")
def _load(cta: Cta, ins: Instruction, threads: Threads) -> None:
    destination, address = ins.operands
    registers = destination if isinstance(destination, tuple) else (destination,)
    size, which = size_of(ins.words[-1]), _which(cta, threads)
    bits = np.zeros((len(cta.lanes), len(registers)), UNSIGNED[size])
    if "shared" in ins.words:
        offsets = cta.address(address, "u32")[which] - SharedMemory.BASE
        bits[which] = cta.shared.load(offsets, size, len(registers), cta.numbers[which])
    else:
        for chosen, memory, offsets in cta.tensor_parts(cta.address(address, "u64")[which]):
            lanes = which[chosen]
            bits[lanes] = memory.load(offsets, size, len(registers), cta.numbers[lanes])
    for i, register in enumerate(registers):
        cta.write(register, bits[:, i], threads)


@instruction("st")
def _store(cta: Cta, ins: Instruction, threads: Threads) -> None:
    address, source = ins.operands
    registers = source if isinstance(source, tuple) else (source,)
    kind, which = ins.words[-1], _which(cta, threads)
    bits = np.stack(
        [cta.everywhere(encode(cta.read(x, kind), kind))[which] for x in registers], axis=1
    )
    if "shared" in ins.words:
        offsets = cta.address(address, "u32")[which] - SharedMemory.BASE
        cta.shared.store(offsets, bits, cta.numbers[which])
    else:
        for chosen, memory, offsets in cta.tensor_parts(cta.address(address, "u64")[which]):
            memory.store(offsets, bits[chosen], cta.numbers[which[chosen]])


@instruction("atom.global")
def _atomic_add(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """Add in global memory, thread by thread; release what the CTA did, acquire what others did."""
    destination, address, source = ins.operands
    if not {"add", "gpu"} <= set(ins.words):
        raise NotImplementedError(f"{ins}: only a counter's atomic is in the table")
    kind = ins.words[-1]
    addresses, amounts = cta.address(address, "u64"), cta.everywhere(cta.read(source, kind))
    before = np.zeros(len(cta.lanes), amounts.dtype)
    for t in _which(cta, threads):
        ((_, memory, offsets),) = cta.tensor_parts(addresses[t : t + 1])
        before[t] = memory.add(offsets, amounts[t])
        if "acq_rel" in ins.words:
            cta.meet(int(addresses[t]))
    cta.write(destination, encode(before, kind), threads)


# Copies that run by themselves --------------------------------------------------------------------


@instruction("cp.async")
def _copy(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """Copy to shared memory; where the last operand is 0, zeros instead."""
    if ins.words[2] == "commit_group":
        return _commit(cta, cta.copies, threads)
    if ins.words[2] == "wait_group":
        return _wait(cta, cta.copies, ins, threads, cta.shared.end_copy)
    to, source, size = ins.operands[:3]
    which = _which(cta, threads)
    wanted = cta.everywhere(cta.read(ins.operands[3] if len(ins.operands) > 3 else size, "u32"))
    if ((wanted != 0) & (wanted != size))[which].any():
        raise PtxError("a copy of a part of its size")
    bits = np.zeros((len(cta.lanes), size // 4), np.uint32)
    reading = which[wanted[which] == size]
    if len(reading):
        for chosen, memory, offsets in cta.tensor_parts(cta.address(source, "u64")[reading]):
            lanes = reading[chosen]
            bits[lanes] = memory.load(offsets, 4, size // 4, cta.numbers[lanes])
    offsets = cta.address(to, "u32")[which] - SharedMemory.BASE
    if (offsets % size).any():
        raise PtxError(f"a copy to an address that is no multiple of its {size} bytes")
    cta.copies[-1].append(cta.shared.begin_copy(offsets, bits[which], cta.numbers[which]))
    return None


def _commit(cta: Cta, groups: list[list[Access]], threads: Threads) -> None:
    if threads is not None and (threads != cta.live).any():
        raise PtxError("a group of copies that only some threads commit")
    groups.append([])


def _wait(
    cta: Cta, groups: list[list[Access]], ins: Instruction, threads: Threads,
    end: Callable[[Access], None],
) -> None:  # fmt: skip
    """Wait until at most so many of the committed groups as the operand tells are in flight."""
    (pending,) = ins.operands
    if threads is not None and (threads != cta.live).any():
        raise PtxError("a wait for copies that only some threads execute")
    while len(groups) - 1 > pending:
        for copy in groups.pop(0):
            end(copy)


# Barriers -----------------------------------------------------------------------------------------


@instruction("bar.sync")
def _barrier(cta: Cta, ins: Instruction, threads: Threads) -> None:
    if ins.operands != (0,):
        raise NotImplementedError(f"{ins}: only barrier 0, of all threads, is known")
    cta.barrier(threads)


@instruction("bar.warp")
def _warp_barrier(cta: Cta, ins: Instruction, threads: Threads) -> None:
    if ins.operands != (-1,):
        raise NotImplementedError(f"{ins}: only barriers of whole warps are known")
    cta.warp_barrier(threads)


@instruction("fence.proxy")
def _fence(cta: Cta, ins: Instruction, threads: Threads) -> None:
    if threads is not None and (threads != cta.live).any():
        raise PtxError("a fence that only some threads execute")
    cta.shared.fence()


@instruction("griddepcontrol")
def _kernel_dependency(cta: Cta, ins: Instruction, threads: Threads) -> None:
    if ins.words[1] == "wait":
        cta.kernel_pending = False


# wgmma's groups are those of cp.async, by another name.


@instruction("wgmma.fence")
def _order_products(cta: Cta, ins: Instruction, threads: Threads) -> None:
    cta.whole_warps(threads)


@instruction("wgmma.commit_group")
def _commit_products(cta: Cta, ins: Instruction, threads: Threads) -> None:
    _commit(cta, cta.products, threads)


@instruction("wgmma.wait_group")
def _wait_for_products(cta: Cta, ins: Instruction, threads: Threads) -> None:
    _wait(cta, cta.products, ins, threads, cta.shared.end_read)
