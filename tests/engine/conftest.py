"""Requests that several files run, and their speeches made one by one."""

from __future__ import annotations

import pytest

from bark_fast import Speech
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint
from helpers.engines import make_engine, one_by_one, random_requests


@pytest.fixture(scope="session")
def requests(small: Checkpoint) -> list[Request]:
    return random_requests(small, 64, longest=60, seed=1)


@pytest.fixture(scope="session")
def alone(small: Checkpoint, requests: list[Request]) -> list[Speech]:
    return one_by_one(make_engine(small, max_batch_size=1), requests)
