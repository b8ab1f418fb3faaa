"""The engine on a GPU never waits for it but at the looks that are meant: on an emulated GPU."""

from __future__ import annotations

import pytest
import torch

from bark_fast import Speech
from bark_fast.models.transfer import to_device, to_host_async
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint
from helpers.emulated_gpu import GPU, EmulatedGPU, HostSyncError, emulated_gpu, rubbish
from helpers.engine_fakes import FakeGraphs
from helpers.engines import gib_for, make_engine, run_all, same


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    with emulated_gpu(monkeypatch) as gpu:
        yield gpu


def test_no_waiting_but_looks(
    small: Checkpoint, gpu: EmulatedGPU, requests: list[Request], alone: list[Speech]
) -> None:
    """Many requests at once; no copy waits, and every result is read after it has arrived."""
    with gpu.lenient():
        engine = make_engine(small, impl="torch", device=GPU, graphs=FakeGraphs(), max_batch_size=8)
    together = run_all(engine, requests[:16])
    assert all(same(a, b) for a, b in zip(together, alone, strict=False))
    # Every batch is waited for, if only to know how long it took.
    n_batches = sum(stage.batches for stage in engine.stats().stages.values())
    assert gpu.waits >= n_batches > 16
    for speech in together:
        for array in (speech.samples, speech.fine_tokens):
            assert not gpu.is_pinned(torch.from_numpy(array)), "pinned memory in users' hands"


def test_no_waiting_when_pages_change_hands(
    small: Checkpoint, gpu: EmulatedGPU, requests: list[Request], alone: list[Speech]
) -> None:
    with gpu.lenient():
        engine = make_engine(
            small, impl="torch", device=GPU, graphs=FakeGraphs(), max_batch_size=8, page_size=8,
            kv_cache_gib=gib_for(small, 1.6, page_size=8),
        )  # fmt: skip
    together = run_all(engine, requests[:16])
    assert all(same(a, b) for a, b in zip(together, alone, strict=False))
    assert engine.stats().preempted > 0


@pytest.mark.parametrize(("utterances", "batch"), [(1.5, 1), (7, 4), (40, 32), (1000, 256)])
def test_the_batch_is_what_the_memory_holds(
    small: Checkpoint, gpu: EmulatedGPU, utterances: float, batch: int
) -> None:
    gib = gib_for(small, utterances, page_size=64)
    with gpu.lenient():
        engine = make_engine(small, impl="torch", device=GPU, kv_cache_gib=gib)
        given = make_engine(small, impl="torch", device=GPU, kv_cache_gib=gib, max_batch_size=20)
    assert engine.runner.config.max_running == batch
    assert given.runner.config.max_running == 20


def test_the_emulated_gpu_keeps_its_rules(gpu: EmulatedGPU) -> None:
    x = to_device([1, 2, 3], device=GPU)
    assert x.device == GPU
    for ask in (
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: bool(x[0] > 0),
        lambda: int(x[0]),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: x[torch.tensor([0, 1])],
        lambda: torch.tensor([4, 5, 6]).to(GPU),
        lambda: x.copy_(torch.tensor([4, 5, 6])),
        lambda: torch.empty(3, dtype=torch.int64).copy_(x, non_blocking=True),
    ):
        with pytest.raises(HostSyncError):
            ask()
    x += 1
    x[0] = 7
    assert to_host_async(x)().tolist() == [7, 3, 4]


def test_copies_arrive_at_an_event(gpu: EmulatedGPU) -> None:
    host = torch.empty(2, dtype=torch.int64, pin_memory=True)
    host.copy_(to_device([1, 2], device=GPU), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    assert host.tolist() == [rubbish(torch.int64)] * 2
    arrived.synchronize()
    assert host.tolist() == [1, 2]


def test_pinned_memory_must_wait_for_its_copy(gpu: EmulatedGPU) -> None:
    host = torch.zeros(2, dtype=torch.int64, pin_memory=True)
    host.to(GPU, non_blocking=True)
    host[0] = 5
    arrived = torch.cuda.Event()
    arrived.record()
    with pytest.raises(AssertionError, match="changed before its copy"):
        arrived.synchronize()
