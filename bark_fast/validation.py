"""Checks of arguments; each raises InputError with the argument, the requirement and the value."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import SupportsFloat

import numpy as np
import numpy.typing as npt

from bark_fast.errors import InputError

SEED_LIMIT = 2**64


def is_finite(number: SupportsFloat) -> bool:
    """math.isfinite, that is False for an integer beyond every float too."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def check_number(
    name: str, value: object, requirement: str, low: float, high: float, *, low_open: bool = False
) -> None:
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
    integer = isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))
    if not (integer and low <= int(value) <= high):  # type: ignore[call-overload]
        raise InputError(f"{name} must be {requirement}, got {value!r}")


def check_seed(name: str, value: object) -> None:
    check_integer(name, value, "an integer from 0 to 2**64 - 1", 0, SEED_LIMIT - 1)


def check_tokens(
    name: str, value: object, shape: tuple[int | None, ...], limit: int
) -> npt.NDArray[np.int64]:
    """`value` as a new int64 array if it holds tokens from 0 to `limit` - 1 in that shape, in which
    None is any length but zero.

    Raises:
        InputError: it is not that; `name` is what the message calls it.
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
