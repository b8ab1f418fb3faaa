"""Keywords, records and comparisons that the tests of the transformers-compatible face share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from bark_fast import BarkFastWarning, InputError
from bark_fast.request import Request
from bark_fast.types import Speech

GREEDY: dict[str, Any] = {"do_sample": False, "fine_temperature": None}


@dataclass
class Seen:
    """The requests that our engine was given, and the speech that it made."""

    requests: list[Request] = field(default_factory=list)
    speeches: list[Speech] = field(default_factory=list)


@contextmanager
def recorded_codes(model: Any) -> Iterator[list[Tensor]]:
    """Record the codes [n_fine, F] of every row that transformers' `model` decodes."""
    record: list[Tensor] = []
    decode = model.codec_decode

    def watch(fine_output: Tensor, output_lengths: Any = None) -> Any:
        record.extend(fine_output)
        return decode(fine_output, output_lengths)

    model.codec_decode = watch
    try:
        yield record
    finally:
        del model.codec_decode


def outcome(model: Any, inputs: Any, keywords: dict[str, Any]) -> Any:
    """Return the audio that generate() makes, or the kind of error and its first words."""
    torch.manual_seed(0)
    try:
        return model.generate(**inputs, **keywords)
    except Exception as error:  # as many kinds as there are causes
        return type(error), str(error)[:60]


def assert_left_to_transformers(
    ours: Any, theirs: Any, inputs: Any, reason: str, **keywords: Any
) -> None:
    """Ours does exactly what transformers' does, and says why once; strict, it is an error."""
    expected = outcome(theirs, inputs, keywords)
    with pytest.warns(BarkFastWarning) as said:
        found = outcome(ours, inputs, keywords)
    told = [str(w.message) for w in said if issubclass(w.category, BarkFastWarning)]
    assert len(told) == 1, told
    assert re.search(f"^transformers' own generate runs, .*, because .*{reason}", told[0])
    assert type(found) is type(expected), (found, expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected
    ours.engine_strict = True
    try:
        with pytest.raises(InputError, match=f"engine_strict.* but .*{reason}"):
            ours.generate(**inputs, **keywords)
    finally:
        del ours.engine_strict
