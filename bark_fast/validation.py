"""Check arguments. An InputError says which argument is wrong (`name`), what it must be
(`requirement`) and what came."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any, SupportsFloat

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


def is_language(value: object) -> bool:
    """Return True for the code of a language, such as "en"."""
    return isinstance(value, str) and value.isascii() and value.isalpha()


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


def check_pause(name: str, value: object) -> None:
    """Check that `value` is a pause between sentences: from 0 to 60 seconds."""
    check_number(name, value, "from 0 to 60 seconds", 0, 60)


def check_temperature(name: str, value: object) -> None:
    """Check that `value` is a temperature: finite, and 0 for the most likely token."""
    check_number(name, value, "a finite number >= 0", 0, math.inf)


def check_tokens(
    name: str,
    value: object,
    shape: tuple[int | None, ...],
    limit: int = 2**63,
    *,
    may_be_empty: bool = False,
) -> npt.NDArray[np.int64]:
    """Return tokens as a new int64 array.

    Args:
        value: integers, or floats that are whole numbers, as a list, a numpy array or a torch
            tensor on any device.
        shape: what the array's shape must be; None stands for any length.
        limit: tokens must be from 0 to `limit` - 1.
        may_be_empty: a length of zero is one too.

    Raises:
        InputError: `value` is no such array.
    """
    wanted = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
    if value is None:
        raise InputError(f"{name} {wanted} is missing")
    array = as_array(name, value)
    if array.size:
        _check_whole(name, array)
    if array.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, array.shape, strict=True)
    ):
        raise InputError(f"{name} must have shape {wanted}, got {list(array.shape)}")
    if array.size == 0:
        if may_be_empty:
            return np.empty(array.shape, dtype=np.int64)
        raise InputError(f"{name} must not be empty")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
        raise InputError(f"{name} must hold values from 0 to {limit - 1}, got {low} to {high}")
    return np.array(array, dtype=np.int64)


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return a path as a Path.

    Raises:
        InputError: `value` is none, or one of bytes.
    """
    try:
        return Path(value)
    except TypeError as error:
        raise InputError(f"{name} must be a path of text, got {value!r}") from error


def as_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Return numbers as a numpy array: those of a list, of an array or of a torch tensor.

    Raises:
        InputError: numpy makes no array of `value`.
    """
    try:
        if hasattr(value, "detach"):  # a tensor; this module does without torch
            value = value.detach().cpu()
            # numpy has no bfloat16, and every number of it is one of float32's.
            value = value.float() if value.is_floating_point() else value
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(f"{name} must be an array of integers: {error}") from error


def _check_whole(name: str, array: npt.NDArray[Any]) -> None:
    """Check that an array holds integers, or floats that are whole numbers as in some voices."""
    if np.issubdtype(array.dtype, np.integer):
        return
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} must hold integers, got {array.dtype}")
    other = array[~(np.isfinite(array) & (array == np.floor(array)))]
    if other.size:
        raise InputError(f"{name} must hold integers, got {array.dtype} with {other[0]:g}")
