"""Typed look-ups in a JSON object, whose errors name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bark_fast.errors import CheckpointError
from bark_fast.validation import is_finite


class Section:
    """One JSON object: typed look-ups whose errors name the file and the key."""

    def __init__(self, raw: Mapping[str, Any], where: str, defaults: object = None) -> None:
        self.raw = raw
        self.where = where
        self.defaults = defaults

    def fail(self, key: str, requirement: str, value: object) -> None:
        raise CheckpointError(f"{self.where}: {key} {requirement}, got {value!r}")

    def section(self, key: str, defaults: object) -> Section:
        value = self.raw.get(key)
        if not isinstance(value, Mapping):
            self.fail(key, "must be a JSON object", value)
        return Section(value, f"{self.where}: {key}", defaults)  # type: ignore[arg-type]

    def value(self, key: str, default: object = None) -> Any:
        # JSON null is "not said", as in transformers' own files.
        value = self.raw.get(key)
        return getattr(default or self.defaults, key, None) if value is None else value

    def integer(self, key: str, low: int, *, default: object = None) -> int:
        value = self.value(key, default)
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
        value: Any = self.raw.get(key) if default is not None else self.value(key)
        if value is None:
            value = default
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
        value = self.value(key)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false", value)
        return bool(value)
