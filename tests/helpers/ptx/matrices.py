"""Matrices over the lanes of a warp: ldmatrix, stmatrix, mma.sync; over four warps: wgmma.

The layouts are those of the ISA's figures: in a fragment of 8 x 8 halves, lane l has row l / 4,
columns 2 (l % 4) and the next. All products add in float64, one term of k after another, so a row's
bits do not depend on its place, and round once to float32.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx.memory import WARP, PtxError, SharedMemory
from helpers.ptx.parser import Instruction, Operand
from helpers.ptx.table import Threads, instruction
from helpers.ptx.values import decode

if TYPE_CHECKING:
    from helpers.ptx.cta import Cta

_LANES = np.arange(WARP)
_ROW, _COLUMN = _LANES // 4, 2 * (_LANES % 4)  # of a lane's first element in a fragment
_GROUP = 4 * WARP  # the threads of one wgmma


def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a [..., M, K] @ b [..., K, N] + c, rounded once to float32."""
    a, b, total = a.astype(np.float64), b.astype(np.float64), c.astype(np.float64)
    for k in range(a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., None, k, :]
    return total.astype(np.float32)


def _registers(cta: Cta, operands: Operand) -> np.ndarray:
    """Return the bits of registers as uint32 [warps, registers, lanes]."""
    assert isinstance(operands, tuple)
    bits = np.stack([cta.everywhere(cta.read(x, "b32")) for x in operands])
    return bits.reshape(len(operands), -1, WARP).transpose(1, 0, 2)


def _write(cta: Cta, operands: Operand, bits: np.ndarray, threads: Threads) -> None:
    """Write uint32 [warps, registers, lanes]."""
    assert isinstance(operands, tuple)
    for i, register in enumerate(operands):
        cta.write(register, bits[:, i].reshape(-1), threads)


def _tiles(bits: np.ndarray) -> np.ndarray:
    """Return fragments uint32 [..., lanes] of two halves each as uint16 [..., 8, 8]."""
    halves = np.ascontiguousarray(bits).view(np.uint16)
    return halves.reshape(*bits.shape[:-1], 8, 8)


# Fragments and shared memory ----------------------------------------------------------------------


def _row_offsets(cta: Cta, ins: Instruction, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the rows of `count` 8 x 8 matrices are, [warps, count, 8], and whose they are.

    Lane 8 i + j has the address of row j of matrix i.
    """
    address = next(x for x in ins.operands if not isinstance(x, tuple))
    offsets = cta.address(address, "u32").reshape(-1, WARP) - SharedMemory.BASE
    numbers = cta.numbers.reshape(-1, WARP)
    shape = (len(offsets), count, 8)
    return offsets[:, : 8 * count].reshape(shape), numbers[:, : 8 * count].reshape(shape)


@instruction("ldmatrix")
def _load_matrices(cta: Cta, ins: Instruction, threads: Threads) -> None:
    warps = cta.whole_warps(threads)
    count = int(ins.words[4][1])
    offsets, numbers = _row_offsets(cta, ins, count)
    rows = np.zeros((len(warps), count, 8, 8), np.uint16)
    found = cta.shared.load(offsets[warps].ravel(), 16 // 8, 8, numbers[warps].ravel())
    rows[warps] = found.reshape(-1, count, 8, 8)
    if "trans" in ins.words:
        rows = rows.swapaxes(-1, -2)
    _write(cta, ins.operands[0], _fragments(rows), threads)


@instruction("stmatrix")
def _store_matrices(cta: Cta, ins: Instruction, threads: Threads) -> None:
    warps = cta.whole_warps(threads)
    count = int(ins.words[4][1])
    offsets, numbers = _row_offsets(cta, ins, count)
    tiles = _tiles(_registers(cta, ins.operands[1]))[warps]
    if "trans" in ins.words:
        tiles = tiles.swapaxes(-1, -2)
    cta.shared.store(offsets[warps].ravel(), tiles.reshape(-1, 8), numbers[warps].ravel())


def _fragments(tiles: np.ndarray) -> np.ndarray:
    """Return matrices uint16 [..., 8, 8] as fragments uint32 [..., lanes]."""
    return np.ascontiguousarray(tiles).reshape(*tiles.shape[:-2], 64).view(np.uint32)


# Products -----------------------------------------------------------------------------------------


def _left(tiles: np.ndarray, kind: str) -> np.ndarray:
    """Return A [..., 16, 16] from its four fragments: rows 0 and 8 of k 0, then those of k 8."""
    a = decode(tiles, kind)
    return np.concatenate(
        [np.concatenate([a[..., i, :, :], a[..., i + 1, :, :]], axis=-2) for i in (0, 2)], axis=-1
    )


def _accumulators(bits: np.ndarray) -> np.ndarray:
    """Return C [..., 16, 8] from float32 registers [..., 4, lanes]: two of row 0, two of row 8."""
    halves = bits.view(np.float32).reshape(*bits.shape[:-2], 2, 2, 8, 4)
    return np.moveaxis(halves, -3, -1).reshape(*bits.shape[:-2], 16, 8)


def _accumulator_bits(c: np.ndarray) -> np.ndarray:
    """Return the registers of C, the inverse of `_accumulators`."""
    halves = np.moveaxis(c.reshape(*c.shape[:-2], 2, 8, 4, 2), -1, -3)
    return np.ascontiguousarray(halves).reshape(*c.shape[:-2], 4, WARP).view(np.uint32)


@instruction("mma")
def _warp_product(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """D [16, 8] = A [16, 16] @ B [16, 8] + C in every warp; B's fragments hold its transpose."""
    cta.whole_warps(threads)
    shape, kind = ins.words[3], ins.words[-2]
    if shape != "m16n8k16" or kind not in ("f16", "bf16") or ins.words[-1] != "f32":
        raise NotImplementedError(f"{ins}: this shape or type is not in the table")
    to, a, b, c = ins.operands
    left = _left(_tiles(_registers(cta, a)), kind)
    right = decode(_tiles(_registers(cta, b)), kind)  # [warps, 2, n, k]
    right = np.concatenate([right[:, 0], right[:, 1]], axis=-1).swapaxes(-1, -2)
    result = multiply(left, right, _accumulators(np.ascontiguousarray(_registers(cta, c))))
    _write(cta, to, _accumulator_bits(result), threads)


@instruction("wgmma.mma_async")
def _group_product(cta: Cta, ins: Instruction, threads: Threads) -> None:
    """D [64, N] = A @ B (+ D), where B, and A or not, are in shared memory."""
    warps = cta.whole_warps(threads)
    if not warps.all():
        raise PtxError("wgmma that not all warps reach")
    columns, kind = int(re.fullmatch(r"m64n(\d+)k16", ins.words[4])[1]), ins.words[-1]
    if kind not in ("f16", "bf16") or ins.words[5] != "f32":
        raise NotImplementedError(f"{ins}: this type is not in the table")
    to, a, b, scale_d, scale_a, scale_b, *transposed = ins.operands
    if (scale_a, scale_b) != (1, 1):
        raise NotImplementedError(f"{ins}: negated operands are not in the table")
    groups = len(cta.lanes) // _GROUP
    if isinstance(a, tuple):
        left = _left(_tiles(_registers(cta, a)), kind).reshape(groups, 64, 16)
    else:
        left = _from_shared(cta, a, 64, kind, bool(transposed[0]))
    right = _from_shared(cta, b, columns, kind, bool(transposed[-1])).swapaxes(-1, -2)
    # Registers 4 i .. 4 i + 3 are the fragment of columns 8 i .. 8 i + 7; a warp has 16 rows.
    old = np.zeros((groups, 64, columns), np.float32)
    if cta.read(scale_d, "pred").all():
        bits = np.ascontiguousarray(_registers(cta, to)).reshape(-1, columns // 8, 4, WARP)
        old = _accumulators(bits).transpose(0, 2, 1, 3).reshape(groups, 64, columns)
    result = multiply(left, right, old).reshape(-1, 16, columns // 8, 8).transpose(0, 2, 1, 3)
    _write(cta, to, _accumulator_bits(result).reshape(len(warps), -1, WARP), threads)


def _from_shared(
    cta: Cta, descriptor: Operand, rows: int, kind: str, transposed: bool
) -> np.ndarray:
    """Return a matrix [groups, rows, 16] that `descriptor` tells the place and layout of."""
    words = cta.read(descriptor, "b64").reshape(-1, _GROUP)
    if (words != words[:, :1]).any():
        raise PtxError("wgmma with descriptors that differ within its four warps")
    found = []
    for group, word in enumerate(words[:, 0]):
        offsets = matrix_offsets(int(word), rows, transposed=transposed) - SharedMemory.BASE
        # 16 bytes are contiguous: 8 columns, or 8 rows of a transposed matrix.
        units = offsets[::8] if transposed else offsets[:, ::8]
        numbers = cta.numbers[group * _GROUP : (group + 1) * _GROUP]
        halves, access = cta.shared.begin_read(units.ravel(), 2, 8, numbers)
        cta.products[-1].append(access)
        halves = halves.reshape(*units.shape, 8)
        found.append((halves.swapaxes(1, 2) if transposed else halves).reshape(rows, 16))
    return decode(np.stack(found), kind)


def matrix_offsets(descriptor: int, rows: int, *, transposed: bool) -> np.ndarray:
    """Return the shared address of each element of a matrix [rows, 16] of halves.

    A descriptor has the start, the leading and the stride offset in units of 16 bytes, and the
    swizzle's width (ISA, "Matrix Descriptor Format"; the canonical layouts are those of
    "Strides"). Not transposed, k is contiguous; else the rows are.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    width = {0: 16, 1: 128, 2: 64, 3: 32}[descriptor >> 62]  # bytes that are contiguous
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if transposed:
        per_line = width // 2
        block, line = row // per_line, row % per_line
        if width == 16:
            leading, stride = stride, leading
        at = block * leading + 2 * line + (k // 8) * stride + (k % 8) * width
    elif width == 16:
        at = (row // 8) * stride + (row % 8) * 16 + (k // 8) * leading + (k % 8) * 2
    else:
        at = (row // 8) * stride + (row % 8) * width + k * 2
    at = start + at
    # Units of 16 bytes within a line are exchanged by the line's number, from the address's bits.
    return at ^ ((at >> 7 & (width // 16 - 1)) << 4)
