"""A checkpoint to break, one thing at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.checkpoints import Checkpoint


@pytest.fixture
def copy(small: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the small checkpoint."""
    return shutil.copytree(small.folder, tmp_path / "copy")
