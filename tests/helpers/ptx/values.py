"""PTX types as numpy arrays: how bits are read as values, and how values become bits."""

from __future__ import annotations

import functools

import numpy as np

UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32),
            8: np.dtype(np.uint64)}  # fmt: skip

# bfloat16 is read as float32 and rounded when it is written; `PAIRS` are two values in 32 bits.
_DTYPES = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64),
           "bf16": UNSIGNED[2]}  # fmt: skip
for _size, _unsigned in UNSIGNED.items():
    _DTYPES[f"b{8 * _size}"] = _DTYPES[f"u{8 * _size}"] = _unsigned
    _DTYPES[f"s{8 * _size}"] = np.dtype(f"i{_size}")
PAIRS = {"f16x2": "f16", "bf16x2": "bf16"}


def size_of(kind: str) -> int:
    """Return the bytes of a value of this PTX type."""
    return 4 if kind in PAIRS else _DTYPES[kind].itemsize


def wider(kind: str) -> str:
    """Return the integer type of twice the width: "s64" for "s32"."""
    return f"{kind[0]}{2 * int(kind[1:])}"


def decode(bits: np.ndarray, kind: str) -> np.ndarray:
    """Return the values that `bits`, unsigned integers, are as the PTX type `kind`."""
    if kind == "pred":
        return bits
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind in PAIRS:  # [..., 2], the lower half first
        halves = np.stack([bits & np.uint32(0xFFFF), bits >> np.uint32(16)], axis=-1)
        return decode(halves.astype(np.uint16), PAIRS[kind])
    dtype = _DTYPES[kind]
    if bits.dtype.itemsize != dtype.itemsize:
        bits = bits.astype(UNSIGNED[dtype.itemsize])
    return bits.view(dtype)


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Return the bits of `values` rounded or wrapped to the PTX type `kind`."""
    if kind == "pred":
        return np.asarray(values)
    if kind == "bf16":
        return _bfloat16_bits(np.asarray(values, np.float32))
    if kind in PAIRS:
        halves = encode(np.asarray(values), PAIRS[kind]).astype(np.uint32)
        return halves[..., 0] | halves[..., 1] << np.uint32(16)
    dtype = _DTYPES[kind]
    return np.asarray(values).astype(dtype, copy=False).view(UNSIGNED[dtype.itemsize])


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Return float32 values as bfloat16, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = (bits + up) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


@functools.lru_cache(maxsize=4096)
def immediate(bits: int, kind: str) -> np.ndarray:
    """Return a constant of the instruction's text as a value of this type."""
    if kind == "pred":
        return np.array(bits != 0)
    size = size_of(kind)
    return decode(np.array(bits & (1 << 8 * size) - 1, UNSIGNED[size]), kind)


def flush(values: np.ndarray) -> np.ndarray:
    """Return float32 values with subnormal ones replaced by zeros of their sign (`.ftz`)."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, values * np.float32(0), values)
