"""Instructions that compute a register from registers and constants, value by value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from helpers.ptx.parser import Instruction
from helpers.ptx.table import TABLE, Step, Threads
from helpers.ptx.values import PAIRS, encode, flush, wider

if TYPE_CHECKING:
    from helpers.ptx.cta import Cta


class Operation(NamedTuple):
    """An instruction that computes a register from its operands.

    Attributes:
        result, sources: types that differ from the instruction's own, which is the opcode's last
            word; "wide" is the integer type of twice its width.
    """

    compute: Callable[..., np.ndarray]
    result: str = ""
    sources: tuple[str, ...] = ()


def _step(ins: Instruction, operation: Operation) -> Step:
    """Return what an instruction does, with the types of its operands looked up once."""
    own = ins.words[-1]
    result = wider(own) if operation.result == "wide" else operation.result or own
    count = len(ins.operands) - 1
    named = operation.sources + ("",) * (count - len(operation.sources))
    kinds = [wider(own) if kind == "wide" else kind or own for kind in named]
    if ins.words[0] == "cvt":
        result = ins.words[-2]
    destination, operands = ins.operands[0], list(zip(ins.operands[1:], kinds, strict=True))
    to_zero = "ftz" in ins.words

    def step(cta: Cta, threads: Threads) -> None:
        sources = [cta.read(operand, kind) for operand, kind in operands]
        if to_zero:
            sources = [flush(x) for x in sources]
        value = operation.compute(*sources)
        if to_zero:
            value = flush(value)
        packs = ins.words[0] == "cvt" and result in PAIRS
        bits = _pack(sources, result) if packs else encode(value, result)
        cta.write(destination, bits, threads)

    return step


def _pack(sources: list[np.ndarray], kind: str) -> np.ndarray:
    """Return two values as a pair in 32 bits, the first in the upper half."""
    upper, lower = (encode(x, PAIRS[kind]).astype(np.uint32) for x in sources)
    return (upper << np.uint32(16)) | lower


def _wide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    kind = np.dtype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")
    return x.astype(kind) * y.astype(kind)


def _high(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _wide(x, y) >> (8 * x.dtype.itemsize)


def _fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64) * y + z).astype(np.float32)


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x / y if x.dtype.kind == "f" else (x - np.fmod(x, y)) // y


def _exactly(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Return a function of float32 that is computed in float64 and rounded."""
    return lambda x: function(x.astype(np.float64)).astype(np.float32)


def _amount(n: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return by how much to shift x: a register's width or more shifts everything out."""
    return np.minimum(n, 8 * x.dtype.itemsize).astype(x.dtype)


def _field(x: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Extract bits of x; those of a signed x carry their sign."""
    width = 8 * x.dtype.itemsize
    left = (width - np.minimum(start + length, width)).astype(x.dtype)
    right = (left + np.minimum(start, width).astype(x.dtype)).astype(x.dtype)
    return np.where(length == 0, x.dtype.type(0), (x << left) >> right)


def _count_ones(x: np.ndarray) -> np.ndarray:
    octets = np.ascontiguousarray(x).view(np.uint8).reshape(*x.shape, -1)
    return np.unpackbits(octets, axis=-1).sum(axis=-1)


_OPERATIONS: dict[str, Operation] = {
    "add": Operation(np.add),
    "sub": Operation(np.subtract),
    "mul": Operation(np.multiply),
    "mul.lo": Operation(np.multiply),
    "mul.hi": Operation(_high),
    "mul.wide": Operation(_wide, "wide"),
    "mad.lo": Operation(lambda x, y, z: x * y + z),
    "mad.wide": Operation(lambda x, y, z: _wide(x, y) + z, "wide", ("", "", "wide")),
    "fma": Operation(_fma),
    "div": Operation(_divide),
    "rem": Operation(np.fmod),
    "neg": Operation(np.negative),
    "abs": Operation(np.abs),
    "min": Operation(lambda x, y: (np.fmin if x.dtype.kind == "f" else np.minimum)(x, y)),
    "max": Operation(lambda x, y: (np.fmax if x.dtype.kind == "f" else np.maximum)(x, y)),
    "and": Operation(np.bitwise_and),
    "or": Operation(np.bitwise_or),
    "xor": Operation(np.bitwise_xor),
    "not": Operation(np.invert),
    "shl": Operation(lambda x, n: x << _amount(n, x), "", ("", "u32")),
    "shr": Operation(lambda x, n: x >> _amount(n, x), "", ("", "u32")),
    "bfe": Operation(_field, "", ("", "u32", "u32")),
    "popc": Operation(_count_ones, "u32"),
    "selp": Operation(lambda x, y, p: np.where(p, x, y), "", ("", "", "pred")),
    "sqrt": Operation(_exactly(np.sqrt)),
    "rsqrt": Operation(_exactly(lambda x: 1 / np.sqrt(x))),
    "rcp": Operation(_exactly(lambda x: 1 / x)),
    "ex2": Operation(_exactly(np.exp2)),
    "lg2": Operation(_exactly(np.log2)),
    "cvt": Operation(lambda x, *_: x),
}

_COMPARE: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "ne": lambda x, y: (x < y) | (x > y),
    # The negation of the opposite: true where one of them is NaN.
    "neu": np.not_equal, "ltu": lambda x, y: ~(x >= y), "leu": lambda x, y: ~(x > y),
    "gtu": lambda x, y: ~(x <= y), "geu": lambda x, y: ~(x < y),
    "equ": lambda x, y: ~((x < y) | (x > y)),
    "nan": lambda x, y: np.isnan(x) | np.isnan(y), "num": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
}  # fmt: skip
_OPERATIONS.update({f"setp.{name}": Operation(f, "pred") for name, f in _COMPARE.items()})
TABLE.update({name: partial(_step, operation=o) for name, o in _OPERATIONS.items()})
