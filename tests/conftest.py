"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Before the first import of a kernel: without a GPU they run in triton's interpreter.
    os.environ["TRITON_INTERPRET"] = "1"
# The tests' networks are far too small for a second thread to pay.
torch.set_num_threads(1)

import pytest
from hypothesis import settings

from helpers.checkpoints import Checkpoint, bark_windows, small_windows

# The same examples in every run, so that what fails somewhere fails everywhere; others with
# --hypothesis-profile=explore.
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Small windows: every edge of every window within a few tokens."""
    return Checkpoint(tmp_path_factory.mktemp("small"), small_windows(), std=0.25)


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Bark's windows and ids."""
    return Checkpoint(tmp_path_factory.mktemp("narrow"), bark_windows(), std=0.25)
