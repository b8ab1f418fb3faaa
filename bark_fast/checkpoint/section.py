"""Typed look-ups in a JSON object, whose errors name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from bark_fast.errors import CheckpointError
from bark_fast.validation import is_finite


class Section:
    """One JSON object of a file.

    A key that is left out or null takes the look-up's `default`, else the attribute of that name
    of the section's `defaults`.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, defaults: object = None) -> None:
        self.raw = raw
        self.where = where
        self.defaults = defaults

    def fail(self, key: str, requirement: str, value: object) -> NoReturn:
        """Raise CheckpointError for what is wrong with `value`."""
        raise CheckpointError(f"{self.where}: {key} {requirement}, got {value!r}")

    def section(self, key: str, defaults: object = None) -> Section:
        """Return the JSON object under `key`, which must be there."""
        value = self.raw.get(key)
        if not isinstance(value, Mapping):
            self.fail(key, "must be a JSON object", value)
        return Section(value, f"{self.where}: {key}", defaults)

    def integer(self, key: str, low: int, *, default: int | None = None) -> int:
        """Return an integer of at least `low`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            self.fail(key, f"must be an integer >= {low}", value)
        return int(value)

    def number(
        self,
        key: str,
        low: float,
        high: float = math.inf,
        *,
        low_open: bool = False,
        default: float | None = None,
    ) -> float:
        """Return a finite number from `low` to `high`; not `low` itself if `low_open`."""
        value = self._value(key, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if (
            not number
            or not is_finite(value)
            or not (low < value if low_open else low <= value)
            or not value <= high
        ):
            bound = f"{'above' if low_open else 'at least'} {low:g}"
            if math.isfinite(high):
                bound += f" and at most {high:g}"
            self.fail(key, f"must be a number {bound}", value)
        return float(value)

    def boolean(self, key: str) -> bool:
        """Return true or false."""
        value = self._value(key, None)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false", value)
        return value

    def _value(self, key: str, default: float | None) -> Any:
        # JSON null is "not said", as in transformers' own files.
        value = self.raw.get(key)
        if value is not None:
            return value
        return getattr(self.defaults, key, None) if default is None else default
