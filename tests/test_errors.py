"""Errors, and the plain data that users hold, survive pickling and copying."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

import bark_fast
from bark_fast import CheckpointError, EngineOptions, GenerationError, GenerationParams, InputError
from bark_fast.checkpoint.suno import SunoFiles
from helpers.checkpoints import Checkpoint
from helpers.failures import HoldsALockError, TakesAKeywordError, fail


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


WAYS = [
    pytest.param(_pickled, id="pickle"),
    pytest.param(lambda value: pickle.loads(pickle.dumps(value, 2)), id="protocol 2"),
    pytest.param(copy.copy, id="copy"),
    pytest.param(copy.deepcopy, id="deepcopy"),
]


def _exceptions_of_the_package() -> Iterator[type[BaseException]]:
    for module in pkgutil.walk_packages(bark_fast.__path__, "bark_fast."):
        if module.name != "bark_fast.__main__":
            importlib.import_module(module.name)
    waiting: list[type[BaseException]] = [BaseException]
    seen = set()
    while waiting:
        for found in type.__subclasses__(waiting.pop()):
            if found not in seen:
                seen.add(found)
                waiting.append(found)
                if found.__module__.startswith("bark_fast"):
                    yield found


@pytest.mark.parametrize("way", WAYS)
def test_every_exception_class(way: Callable[[Any], Any]) -> None:
    found = list(_exceptions_of_the_package())
    assert {bark_fast.BarkFastError, bark_fast.BarkFastWarning, GenerationError} < set(found)
    for cls in found:
        error = cls([ValueError("boom"), None]) if cls is GenerationError else cls("a message", 7)
        error.detail = {"frames": [1, 2]}  # type: ignore[attr-defined]
        again = way(error)
        assert type(again) is cls
        assert (str(again), again.args) == (str(error), error.args)
        assert again.detail == {"frames": [1, 2]}


@pytest.mark.parametrize("way", WAYS)
def test_cause_and_notes(way: Callable[[Any], Any]) -> None:
    error = CheckpointError("model.safetensors: damaged")
    error.__notes__ = ["while loading"]
    error.__cause__ = InputError("inner")
    error.__cause__.__cause__ = OSError(2, "no such file", "model.safetensors")
    again = way(error)
    assert again.__notes__ == ["while loading"]
    assert type(again.__cause__) is InputError
    innermost = again.__cause__.__cause__
    assert (innermost.errno, innermost.filename) == (2, "model.safetensors")
    assert again.__suppress_context__


@pytest.mark.parametrize("way", WAYS)
def test_results_come_along(small: Checkpoint, way: Callable[[Any], Any]) -> None:
    speech = small.bark.generate("a", params=GenerationParams(seed=1, max_semantic_tokens=3))
    error = GenerationError([speech, InputError("text must not be empty"), MemoryError()])
    again = way(error)
    first, second, third = again.results
    assert np.array_equal(first.samples, speech.samples)
    assert np.array_equal(first.fine_tokens, speech.fine_tokens)
    assert first.timings == speech.timings
    assert (type(second), str(second)) == (InputError, "text must not be empty")
    assert isinstance(third, MemoryError)


@pytest.mark.parametrize("foreign", [HoldsALockError, TakesAKeywordError])
def test_what_cannot_be_pickled_is_named(foreign: Any) -> None:
    error = GenerationError([None, foreign("disk on fire", code=5)])
    error.__cause__ = foreign("smoke", code=6)
    again = _pickled(error)
    assert str(again) == str(error)
    assert again.results[0] is None
    for found, words in ((again.results[1], "disk on fire"), (again.__cause__, "smoke")):
        assert type(found) is RuntimeError
        assert f"{foreign.__name__}: {words}" in str(found)
    assert copy.copy(error).results[1] is error.results[1]


def test_errors_come_home_from_another_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(GenerationError) as caught:
            pool.submit(fail, "list").result(timeout=300)
        assert isinstance(caught.value.results[1], InputError)
        with pytest.raises(InputError, match="seed must be"):
            pool.submit(fail, "seed must be").result(timeout=300)


@pytest.mark.parametrize("way", WAYS)
def test_plain_data(small: Checkpoint, way: Callable[[Any], Any]) -> None:
    for value in (
        GenerationParams(temperature=0.3, seed=2**64 - 1),
        EngineOptions(max_batch_size=3, policy="latency"),
        SunoFiles("folder", fine="small"),
        small.bark.stats(),
    ):
        assert way(value) == value
    voice = small.bark.load_voice(small.voice(20))
    again = way(voice)
    assert again.name == voice.name
    assert all(np.array_equal(again.arrays()[key], array) for key, array in voice.arrays().items())
    request = small.bark.request("a", voice, GenerationParams(seed=3))
    assert way(request).text_ids == request.text_ids


def test_a_warning_that_is_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(bark_fast.BarkFastWarning, match="cut") as caught:
            warnings.warn("the text was cut", bark_fast.BarkFastWarning, stacklevel=1)
    assert str(_pickled(caught.value)) == "the text was cut"
