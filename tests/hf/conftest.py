"""One small checkpoint, loaded by transformers' classes and by ours, and what passes inside."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import transformers

import bark_fast
from bark_fast.engine.driver import Driver
from helpers.checkpoints import Checkpoint
from helpers.hf_models import Seen


@pytest.fixture(scope="session")
def theirs(small: Checkpoint) -> Any:
    return transformers.BarkModel.from_pretrained(small.folder).eval()


@pytest.fixture(scope="session")
def _ours(small: Checkpoint) -> Any:
    return bark_fast.BarkModel.from_pretrained(small.folder)


@pytest.fixture
def ours(_ours: Any) -> Iterator[Any]:
    """A model that is built once; what a test changes of its generation_config is put back."""
    before = copy.deepcopy(_ours.generation_config)
    yield _ours
    _ours.generation_config = before


@pytest.fixture
def fresh(small: Checkpoint) -> Any:
    """A new model, which the test may change."""
    return bark_fast.BarkModel.from_pretrained(small.folder)


@pytest.fixture(scope="session")
def processor(small: Checkpoint) -> Any:
    # The small checkpoint lists no voices, which transformers warns of.
    return bark_fast.BarkProcessor.from_pretrained(small.folder, speaker_embeddings_dict_path=None)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Record the requests and the speech that pass between generate() and the engine."""
    record = Seen()
    finish = Driver.finish

    def watch(self: Driver, requests: Any, progress: Any) -> Any:
        futures = finish(self, requests, progress)
        record.requests += requests
        record.speeches += [future.result() for future in futures]
        return futures

    monkeypatch.setattr(Driver, "finish", watch)
    return record


@pytest.fixture
def pair(small: Checkpoint, fresh: Any) -> tuple[Any, Any]:
    """Our model and transformers', which the test may change."""
    return fresh, transformers.BarkModel.from_pretrained(small.folder)
