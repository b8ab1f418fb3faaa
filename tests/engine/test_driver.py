"""Threads that step: callers and the driver's own."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

from bark_fast import Speech
from bark_fast.engine.driver import Driver
from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import PAGES, alone, fake_engine, make_request
from helpers.engines import same


def test_eight_threads(small: Checkpoint) -> None:
    engine = fake_engine(small.config, n_pages=PAGES)
    driver = Driver(engine)
    results: dict[int, Speech] = {}

    def speak(first: int) -> None:
        rng = random.Random(first)
        seeds = range(first, first + 25)
        futures = {seed: driver.begin(make_request(small, seed)) for seed in seeds}
        for seed, future in futures.items():
            if rng.random() < 0.1 and future.cancel():
                continue
            results[seed] = future.result(timeout=60)

    threads = [threading.Thread(target=speak, args=(100 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: not engine.has_work)
    assert len(results) > 150
    for seed in list(results)[::10]:
        assert same(results[seed], alone(small, make_request(small, seed)))
    assert engine.used_pages == 0
    # The engine's thread ends with the work.
    wait_until(lambda: not any(t.name == "bark-fast engine" for t in threading.enumerate()))


def test_the_driver_survives_a_fault_of_the_engine(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake_engine(small.config, n_pages=PAGES)
    driver = Driver(engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "schedule", lambda policy: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            driver.begin(make_request(small, 30)).result(timeout=60)
    assert driver.begin(make_request(small, 30)).result(timeout=60).seed == 30


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
