"""Weights that come and go: the same tokens, one stage at a time, few moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bark_fast import Bark, InputError
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.devices import check_offload
from bark_fast.engine.build import load_engine
from bark_fast.engine.engine import Engine
from bark_fast.engine.offload import OffloadedWeights
from bark_fast.engine.options import EngineOptions
from helpers.checkpoints import Checkpoint
from helpers.engines import make_engine, one_by_one, random_requests, run_all, same

CPU = torch.device("cpu")


def offloaded(checkpoint: Checkpoint, **options: object) -> tuple[Engine, OffloadedWeights]:
    """An engine whose "device" is other memory of the CPU."""
    source = Source.open(checkpoint.folder, revision=None, local_files_only=True)
    engine = load_engine(
        TensorsInFiles(source), checkpoint.config, dtype=torch.float32, device=CPU, impl="torch",
        options=EngineOptions(**options), offload=True,
    )  # fmt: skip
    bring: Any = engine.runner.before_stage
    return engine, bring.__self__


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are brought; what is not there is NaN."""
    brought: list[str] = []
    bring = OffloadedWeights.bring

    def watch(self: OffloadedWeights, name: str) -> None:
        if self.on_device != name:
            brought.append(name)
            self._place.view(torch.float32).fill_(torch.nan)
        bring(self, name)

    monkeypatch.setattr(OffloadedWeights, "bring", watch)
    return brought


def test_the_same_tokens_in_few_moves(small: Checkpoint, watched: list[str]) -> None:
    requests = random_requests(small, 6, longest=20, seed=0)
    expected = one_by_one(offloaded(small)[0], requests)
    watched.clear()
    engine, weights = offloaded(small, max_batch_size=8)
    together = run_all(engine, requests)
    assert all(same(a, b) for a, b in zip(together, expected, strict=True))
    assert watched == ["semantic", "coarse", "fine", "codec"], "each stage once for all"
    assert weights.moves == 4
    plain = one_by_one(make_engine(small, impl="torch"), requests)
    assert all(same(a, b) for a, b in zip(plain, expected, strict=True))


def test_only_the_largest_stage_has_room(small: Checkpoint) -> None:
    engine, weights = offloaded(small)
    lengths = {name: len(stored) for name, stored in weights._stored.items()}
    assert set(lengths) == {"semantic", "coarse", "fine", "codec"}
    assert weights.n_bytes == max(lengths.values()) < sum(lengths.values())
    place = weights._place.untyped_storage().data_ptr()
    seen: list[torch.Tensor] = []

    def collect(weight: torch.Tensor) -> torch.Tensor:
        seen.append(weight)
        return weight

    for network in (
        engine.runner.semantic.stage.model,
        engine.runner.coarse.stage.model,
        engine.runner.fine.model,
        engine.runner.codec.model,
    ):
        network.map_weights(collect)
    assert len(seen) > 50
    for weight in seen:
        assert weight.untyped_storage().data_ptr() == place, "a weight outside"
        assert weight.data_ptr() % 16 == 0


def test_cancelling_and_coming_later(small: Checkpoint, watched: list[str]) -> None:
    """Utterances that arrive while others are in later stages wait for their turn, and end."""
    requests = random_requests(small, 8, longest=16, seed=1)
    engine, _ = offloaded(small, max_batch_size=2)
    futures = [engine.submit(request) for request in requests[:4]]
    for _ in range(12):
        engine.step()
    futures += [engine.submit(request) for request in requests[4:]]
    futures[1].cancel()
    while engine.step():
        pass
    expected = one_by_one(offloaded(small)[0], requests)
    for i, (future, alone) in enumerate(zip(futures, expected, strict=True)):
        assert future.cancelled() if i == 1 else same(future.result(), alone)
    assert engine.used_pages == 0


def test_a_cpu_has_nothing_to_offload_from(small: Checkpoint) -> None:
    with pytest.raises(InputError, match="offload must be False on a CPU"):
        Bark.from_pretrained(small.folder, device="cpu", offload=True)
    with pytest.raises(InputError, match="offload must be True or False, got 1"):
        check_offload(1, torch.device("cuda"))
