"""Rows that are said quickly, and what their folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bark_fast import Bark
from bark_fast.bulk import Summary, run
from helpers.checkpoints import Checkpoint

QUICK = {"max_semantic_tokens": 4}
"""Parameters of a row whose sentences last a fraction of a second."""


def quick(row_id: Any, text: Any = "Hello there.", **values: Any) -> dict[str, Any]:
    return {"id": row_id, "text": text, **QUICK, **values}


def manifest(out: Path, pattern: str = "manifest-*.jsonl") -> list[dict[str, Any]]:
    """Return the lines of a folder's manifest."""
    return [
        json.loads(line)
        for path in sorted(out.glob(pattern))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def tree(out: Path) -> dict[str, bytes]:
    """Return all files of a folder, hidden ones too."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def bark(small: Checkpoint) -> Bark:
    return small.bark


@pytest.fixture
def bulk(bark: Bark, tmp_path: Path) -> Callable[..., tuple[Summary, list[dict[str, Any]]]]:
    """Return what runs rows into tmp_path / "out", and returns the summary and the manifest."""

    def bulk(
        rows: Iterable[Any], out: str = "out", **options: Any
    ) -> tuple[Summary, list[dict[str, Any]]]:
        summary = run(rows, tmp_path / out, bark=bark, **options)
        return summary, manifest(tmp_path / out)

    return bulk
