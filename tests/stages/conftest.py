"""Fixtures that the tests of the stages share."""

from __future__ import annotations

import pytest

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.reading import parse_config
from helpers.checkpoints import bark_windows


@pytest.fixture(scope="session")
def config() -> Config:
    """Bark's own ids, rates and windows."""
    return parse_config(*bark_windows())
