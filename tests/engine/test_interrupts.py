"""Exceptions thrown into a step from outside: they reach the caller, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import bark_fast
from bark_fast import Bark, CheckpointError, GenerationParams, Speech
from bark_fast.engine.engine import Engine
from bark_fast.errors import is_asynchronous
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import PAGES, alone, fake_engine, finish, make_request
from helpers.engines import make_engine, one_by_one, random_requests, same


class AlarmError(TimeoutError):
    """What an alarm's handler raises: an Exception, an OSError even."""


# Which exceptions come from outside


def _raise(signum: int, frame: Any) -> None:
    raise AlarmError(f"signal {signum}")


class _Handler:
    def __call__(self, signum: int, frame: Any) -> None:
        self.inner()

    def method(self, signum: int, frame: Any) -> None:
        try:
            {}["x"]
        except KeyError as error:
            raise AlarmError("from") from error

    def inner(self) -> None:
        raise AlarmError


HANDLERS: dict[str, Any] = {
    "a function": _raise,
    "a partial": functools.partial(_raise),
    "an object": _Handler(),
    "a method": _Handler().method,
    "any arguments": lambda *arguments: _raise(*arguments),
    "Python's own": signal.default_int_handler,
}


def _busy() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        sum(range(50))


@contextlib.contextmanager
def handling(handler: Any, number: int = signal.SIGUSR1) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(number, before)


@pytest.mark.parametrize("kind", HANDLERS)
def test_a_handlers_exception_comes_from_outside(kind: str) -> None:
    with handling(HANDLERS[kind]):
        sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        sender.start()
        with pytest.raises((AlarmError, KeyboardInterrupt)) as caught:
            _busy()
        sender.join()
    assert is_asynchronous(caught.value)
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = caught.value
    assert is_asynchronous(wrapped)


def throw_into(thread: int, kind: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


@pytest.mark.parametrize("kind", [AlarmError, KeyboardInterrupt, ValueError, SystemExit])
def test_what_another_thread_sets_comes_from_outside(kind: type[BaseException]) -> None:
    sender = threading.Timer(0.05, throw_into, (threading.get_ident(), kind))
    sender.start()
    with pytest.raises(kind) as caught:
        _busy()
    assert is_asynchronous(caught.value)


def _bare() -> None:
    raise ValueError


def _again() -> None:
    try:
        _bare()
    except ValueError:
        raise


def _assert_nothing() -> None:
    assert not sys.argv


@pytest.mark.parametrize(
    "fail",
    [
        _bare,
        _again,
        _assert_nothing,
        lambda: 1 / 0,
        lambda: {}["x"],
        lambda: next(iter(())),
        lambda: torch.ones(2) @ torch.ones(3),
        lambda: torch.tensor("x"),
        lambda: ctypes.CDLL("/no/such/library"),
        lambda: np.zeros(3)[5],
        lambda: os.stat("/no/such/file"),
        lambda: bytearray(2**62),
    ],
)
def test_a_failure_does_not(fail: Callable[[], Any]) -> None:
    with pytest.raises(Exception) as caught:
        fail()
    assert not is_asynchronous(caught.value)
    try:  # an interrupt that was dealt with before says nothing of what fails now
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(Exception) as caught:
            fail()
    assert not is_asynchronous(caught.value)


# Thrown into any line of a step

PACKAGE = str(Path(bark_fast.__file__).parent)


class Throw:
    """Throws an exception into the line of these folders that is the `place`-th to run."""

    def __init__(self, place: float, kind: type[BaseException], *folders: str) -> None:
        self.place, self.kind = place, kind
        self.n_lines, self.where = 0, "nowhere"
        self._inside = tuple(os.path.join(PACKAGE, folder) for folder in folders)

    def __enter__(self) -> Throw:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self._inside):
            return None
        if event == "line":
            self.n_lines += 1
            if self.n_lines == self.place:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise self.kind("thrown in")
        return self._trace


def count_lines(run: Callable[[], Any], *folders: str) -> int:
    with Throw(math.inf, AlarmError, *folders) as counter:
        run()
    return counter.n_lines


def finish_through(engine: Engine, kind: type[BaseException]) -> int:
    """Step until nothing is left, however often `kind` comes out; return how often it did."""
    n = 0
    while True:
        try:
            finish(engine)
            return n
        except kind:
            n += 1


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kind", [AlarmError, KeyboardInterrupt])
def test_any_line_of_a_step(small: Checkpoint, depth: int, kind: type[BaseException]) -> None:
    """With too few pages, so that they change hands."""
    requests = [make_request(small, seed) for seed in range(20, 27)]
    expected = [alone(small, request) for request in requests]

    def begin() -> tuple[Engine, list[Future[Speech]]]:
        engine = fake_engine(small.config, n_pages=20, depth=depth, steps=4, policy="latency")
        return engine, [engine.submit(request) for request in requests]

    counted, _ = begin()
    n_lines = count_lines(lambda: finish(counted), "engine")
    rng = random.Random(depth)
    for place in sorted(rng.randrange(1, n_lines) for _ in range(25)):
        engine, futures = begin()
        with Throw(place, kind, "engine") as throw:
            n = finish_through(engine, kind)
        assert n == 1, throw.where
        for future, speech in zip(futures, expected, strict=True):
            assert same(future.result(timeout=0), speech), throw.where
        assert (engine.used_pages, engine.has_work) == (0, False), throw.where
        late = engine.submit(requests[0])
        finish(engine)
        assert same(late.result(timeout=0), expected[0])


@pytest.mark.parametrize("page_size", [None, 8])
def test_any_line_of_the_real_stages(small: Checkpoint, page_size: int | None) -> None:
    """The pages, the decode loop's tensors and the codes in the making stay right."""
    folders = ("engine", "stages", "models")
    engine = make_engine(small, page_size=page_size, steps_per_look=3)
    requests = random_requests(small, 4, longest=20, seed=3)
    expected = one_by_one(engine, requests)
    n_lines = count_lines(lambda: one_by_one(engine, requests[:2]), *folders)
    rng = random.Random(1)
    for place in sorted(rng.randrange(1, n_lines) for _ in range(10)):
        futures = [engine.submit(request) for request in requests]
        with Throw(place, AlarmError, *folders) as throw:
            assert finish_through(engine, AlarmError) == 1
        for future, speech in zip(futures, expected, strict=True):
            found = future.result(timeout=0)
            assert same(found, speech), throw.where
            assert np.array_equal(found.samples, speech.samples), throw.where
        assert engine.used_pages == 0


# Through the front door


@pytest.mark.parametrize("way", ["alarm", "control-C", "another thread"])
def test_generate_is_interrupted_and_others_are_not(small: Checkpoint, way: str) -> None:
    bark = small.bark
    params = GenerationParams(min_semantic_tokens=40, max_semantic_tokens=40, seed=4)
    texts = ["mine", "my other"]
    whole = bark.generate(texts, params=params)
    background = [bark.request(f"theirs {i}", None, params) for i in range(3)]
    expected = [bark.submit(request).result(timeout=60) for request in background]
    start = time.perf_counter()
    bark.generate(texts, params=params)
    usual_s = time.perf_counter() - start
    rng, interrupted = random.Random(0), 0
    number = signal.SIGINT if way == "control-C" else signal.SIGALRM
    kind = KeyboardInterrupt if way == "control-C" else AlarmError
    me = threading.get_ident()
    with handling(signal.default_int_handler if way == "control-C" else _raise, number):
        for round_ in range(6):
            futures: list[Future[Speech]] = []
            helpers = [
                threading.Timer(0.001 * i, lambda r, to: to.append(bark.submit(r)), (r, futures))
                for i, r in enumerate(background)
            ]
            if round_ % 2:
                futures.append(bark.submit(background[0]))
            for helper in helpers:
                helper.start()
            delay_s = rng.uniform(0.05, 1) * usual_s
            try:
                if way == "alarm":
                    signal.setitimer(signal.ITIMER_REAL, delay_s)
                else:
                    throw: tuple[Any, ...] = (os.kill, (os.getpid(), number))
                    if way == "another thread":
                        throw = (throw_into, (me, AlarmError))
                    thrower = threading.Timer(delay_s, *throw)
                    helpers.append(thrower)
                    thrower.start()
                bark.generate(texts, params=params)
                _busy()  # it was quick this time
            except kind:
                interrupted += 1
            for helper in helpers:
                helper.join()
            for future in futures:
                found = future.result(timeout=60)
                assert any(same(found, speech) for speech in expected)
            again = bark.generate(texts, params=params)
            assert all(same(a, b) for a, b in zip(again, whole, strict=True))
    assert interrupted == 6
    _wait_until(lambda: not bark.engine.has_work)
    assert bark.engine.used_pages == 0


def test_a_progress_callback_is_interrupted(small: Checkpoint) -> None:
    """The callback's own error is its utterance's; an alarm that rings in it is not."""
    engine = fake_engine(small.config, n_pages=PAGES)
    calls = 0

    def report(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
            _busy()

    def fail(*_: Any) -> None:
        raise AlarmError("of its own")

    requests = [make_request(small, seed) for seed in (30, 31, 32)]
    with handling(_raise):
        futures = [
            engine.submit(request, progress=progress)
            for request, progress in zip(requests, (report, fail, None), strict=True)
        ]
        assert finish_through(engine, AlarmError) == 1
    assert same(futures[0].result(timeout=0), alone(small, requests[0]))
    assert str(futures[1].exception(timeout=0)) == "of its own"
    assert same(futures[2].result(timeout=0), alone(small, requests[2]))


# While a checkpoint is loaded


def test_an_alarm_is_no_damage_of_a_file(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ring(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        _busy()

    for file in small.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        Bark.from_pretrained(tmp_path, device="cpu")
    monkeypatch.setattr(torch, "load", ring)
    with handling(_raise), pytest.raises(AlarmError):
        Bark.from_pretrained(tmp_path, device="cpu")
    monkeypatch.setattr(np, "load", ring)
    (tmp_path / "voice.npz").write_bytes(b"x")
    with handling(_raise), pytest.raises(AlarmError):
        small.bark.load_voice(tmp_path / "voice.npz")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_requests_are_not_changed_by_what_is_made(small: Checkpoint) -> None:
    """They are what an utterance begins again from."""
    request: Request = make_request(small, 30)
    before = repr(request)
    alone(small, request)
    assert repr(request) == before
