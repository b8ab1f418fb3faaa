"""Many texts into many files, once each, however often the run is cut short."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bark_fast.bulk.ledger import Entry
    from bark_fast.bulk.rows import read_rows
    from bark_fast.bulk.runner import Summary, run

# The command's options need none of it, and torch takes its time.
_LAZY = {"Entry": "ledger", "Summary": "runner", "read_rows": "rows", "run": "runner"}
__all__ = ["Entry", "Summary", "read_rows", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
