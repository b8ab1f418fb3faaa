"""Keywords and a record that the tests of the transformers-compatible face share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bark_fast.request import Request
from bark_fast.types import Speech

GREEDY: dict[str, Any] = {"do_sample": False, "fine_temperature": None}


@dataclass
class Seen:
    """The requests that our engine was given, and the speech that it made."""

    requests: list[Request] = field(default_factory=list)
    speeches: list[Speech] = field(default_factory=list)
