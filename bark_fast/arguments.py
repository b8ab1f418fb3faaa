"""Arguments that hold for one utterance or for each of a list."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bark_fast.errors import InputError
from bark_fast.types import GenerationParams, Voice


def checked_params(params: Any) -> GenerationParams:
    if params is None:
        return GenerationParams()
    if not isinstance(params, GenerationParams):
        raise InputError(f"params must be GenerationParams, got {type(params).__name__}")
    return params


def for_each(
    first: Sequence[Any], voice: Any, params: Any, *, single: bool, what: str = "texts"
) -> list[tuple[Any, Any, Any]]:
    """(text or tokens, voice, params) of each utterance; `what` is what errors call the first."""
    if single:
        return [(first[0], voice, params)]
    of = f"{len(first)} {what}"
    voices = _one_each("voice", voice, len(first), of, (str, os.PathLike, Mapping, Voice))
    all_params = _one_each("params", params, len(first), of, (GenerationParams,))
    return list(zip(first, voices, all_params, strict=True))


def as_list(name: str, values: Any) -> list[Any]:
    if not isinstance(values, Sequence) or isinstance(values, (bytes, bytearray)):
        raise InputError(
            f"{name} must be a string or a list of strings, got {type(values).__name__}"
        )
    return list(values)


def _one_each(name: str, value: Any, count: int, of: str, single: tuple[type, ...]) -> list[Any]:
    """`value` for each of `count` utterances, or the list of as many that it is."""
    if value is None or isinstance(value, single):
        return [value] * count
    if not isinstance(value, Sequence):
        raise InputError(f"{name} must be one value or a list of them, got {type(value).__name__}")
    if len(value) != count:
        raise InputError(f"{name} must have one entry for each of the {of}, got {len(value)}")
    return list(value)
