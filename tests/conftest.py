"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import random

import torch

if not torch.cuda.is_available():
    # Before the first import of a kernel: without a GPU they run in triton's interpreter.
    os.environ["TRITON_INTERPRET"] = "1"
# The tests' networks are far too small for a second thread to pay, here or in the processes that
# tests start: on a machine whose cores are all busy it is only waited for.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings

from helpers.checkpoints import Checkpoint, bark_windows, small_windows
from helpers.programs import OPTION

# The same examples in every run, so that what fails somewhere fails everywhere; others with
# --hypothesis-profile=explore.
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers begin with the files that take long: each gets whole files, in this order, and
    at the end all would wait for one that is still at a long file."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        all_of = Counter(item.path for item in items)
        items.sort(key=lambda item: (-slow[item.path], -all_of[item.path]))


@pytest.fixture(autouse=True)
def same_draws() -> Iterator[None]:
    """Begin each test with the same generators: what is drawn without a seed is the same in every
    run too. (One random model's draw in a hundred ends before its limit.)"""
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr("secrets.randbits", random.Random(0).getrandbits)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        OPTION, action="store_true", help="fail, not skip, tests whose programs are not installed"
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Small windows: every edge of every window within a few tokens."""
    return Checkpoint(tmp_path_factory.mktemp("small"), small_windows(), std=0.25)


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Bark's windows and ids."""
    return Checkpoint(tmp_path_factory.mktemp("narrow"), bark_windows(), std=0.25)
