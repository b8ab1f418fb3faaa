"""What the tests of the stages share."""

from __future__ import annotations

import pytest

from bark_fast.checkpoint.config import Config
from helpers.checkpoints import bark_windows


@pytest.fixture(scope="session")
def config() -> Config:
    """Bark's own ids, rates and windows."""
    return Config.from_dicts(*bark_windows())
