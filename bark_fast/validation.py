"""Check arguments. An InputError says which argument is wrong (`name`), what it must be
(`requirement`) and what came."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import SupportsFloat

import numpy as np
import numpy.typing as npt

from bark_fast.errors import InputError

SEED_LIMIT = 2**64


def is_finite(number: SupportsFloat) -> bool:
    """Return what math.isfinite does, and False for an integer beyond every float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def check_number(
    name: str, value: object, requirement: str, low: float, high: float, *, low_open: bool = False
) -> None:
    """Check that `value` is a finite number from `low` to `high`; above `low` if `low_open`."""
    number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    inside = (
        number
        and is_finite(value)  # type: ignore[arg-type]
        and (low < value if low_open else low <= value)  # type: ignore[operator]
        and value <= high  # type: ignore[operator]
    )
    if not inside:
        raise InputError(f"{name} must be {requirement}, got {value!r}")


def check_integer(name: str, value: object, requirement: str, low: int, high: float) -> None:
    """Check that `value` is an integer from `low` to `high`; numpy's integers are, booleans not."""
    integer = isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))
    if not (integer and low <= int(value) <= high):  # type: ignore[call-overload]
        raise InputError(f"{name} must be {requirement}, got {value!r}")


def check_seed(name: str, value: object) -> None:
    """Check that `value` is a seed: an integer from 0 to 2**64 - 1."""
    check_integer(name, value, "an integer from 0 to 2**64 - 1", 0, SEED_LIMIT - 1)


def check_tokens(
    name: str, value: object, shape: tuple[int | None, ...], limit: int
) -> npt.NDArray[np.int64]:
    """Return tokens as a new int64 array.

    Args:
        shape: what the array's shape must be; None stands for any length but zero.
        limit: tokens must be from 0 to `limit` - 1.

    Raises:
        InputError: `value` is no such array.
    """
    wanted = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
    if value is None:
        raise InputError(f"{name} {wanted} is missing")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of integers: {error}") from error
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must hold integers, got {array.dtype}")
    if array.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, array.shape, strict=True)
    ):
        raise InputError(f"{name} must have shape {wanted}, got {list(array.shape)}")
    if array.size == 0:
        raise InputError(f"{name} must not be empty")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
        raise InputError(f"{name} must hold values from 0 to {limit - 1}, got {low} to {high}")
    return np.array(array, dtype=np.int64)
