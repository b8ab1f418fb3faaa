"""Tests of what only a GPU can show: `pytest -m gpu`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from bark_fast import Bark, GenerationParams, kernels
from bark_fast.ambient import exact_float32
from bark_fast.engine.engine import Engine
from bark_fast.engine.warm_up import warm_up
from bark_fast.stages.causal import CausalTask
from bark_fast.stages.fine import FineTask
from bark_fast.stages.sampling import SamplingParams, batch_sampling
from helpers.checkpoints import Checkpoint
from helpers.engines import gib_for, make_engine, one_by_one, random_requests, run_all, same
from helpers.kernel_cases import exact_linear
from helpers.kernels import assert_accurate, randn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_split_attention_does_not_depend_on_who_arrives_last() -> None:
    lengths = [1024, 700, 257, 1, 999, 512, 300, 640] * 8
    batch, heads, size, page_size = len(lengths), 4, 64, 16
    per_sequence = -(-max(lengths) // page_size)
    q = randn(batch, heads, size, seed=1, dtype=torch.bfloat16)
    pages = randn(2, batch * per_sequence, heads, page_size, size, dtype=torch.bfloat16)
    tables = torch.arange(batch * per_sequence, device="cuda").view(batch, -1)
    seq_lens = torch.tensor(lengths, device="cuda")

    def attention() -> torch.Tensor:
        return kernels.paged_attention(
            q, pages[0], pages[1], block_tables=tables, seq_lens=seq_lens, max_queries=1,
            max_length=max(lengths), decode=True, impl="triton",
        )  # fmt: skip

    first = attention()
    for _ in range(300):
        assert torch.equal(attention(), first)


@pytest.mark.parametrize("norm", [True, False])
def test_dependent_launch_changes_no_bit(norm: bool) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("programmatic dependent launch starts with sm_90")
    x, weight = (randn(n, 1024, seed=n, dtype=torch.bfloat16) for n in (4, 4096))
    weights = (randn(1024, seed=2, dtype=torch.bfloat16), None) if norm else None
    plain, dependent = (
        [
            kernels.backend("triton", pdl=pdl).fused_linear(
                x, weight, norm=weights, gelu=True, decode=True
            )
            for _ in range(50)
        ]
        for pdl in (False, True)
    )
    assert all(torch.equal(y, plain[0]) for y in (*plain, *dependent))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(3072, 1024), (1024, 4096)])
def test_the_number_of_rows_changes_no_bit_of_a_row(n: int, k: int, dtype: torch.dtype) -> None:
    """It chooses between tiles of several heights, and persistent ones."""
    x, weight = randn(8192, k, dtype=dtype), randn(n, k, seed=1, dtype=dtype) / k**0.5
    together = kernels.fused_linear(x, weight, gelu=True, impl="triton")
    for rows in (1, 64, 257, 1024, 2000, 4096):
        fewer = kernels.fused_linear(x[:rows], weight, gelu=True, impl="triton")
        assert torch.equal(fewer, together[:rows]), rows
    plain = kernels.fused_linear(x, weight, gelu=True)
    assert_accurate(together, plain, exact_linear(x, weight, gelu=True))


def test_the_sampling_step_replays_in_a_graph() -> None:
    n, page_size, draws = 8, 16, 20

    def state() -> kernels.DecodeState:
        def full(value: int, *shape: int, of: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.full(shape, value, dtype=of, device="cuda")

        return kernels.DecodeState(
            token_ids=full(0, n), positions=full(0, n), seq_lens=full(1, n),
            slot_mapping=full(0, n),
            block_tables=torch.arange(n * 4, device="cuda").view(n, 4), num_generated=full(0, n),
            limits=torch.arange(n, device="cuda") + 10, finished=full(0, n, of=torch.int32),
            history=full(-1, n, draws), page_size=page_size,
        )  # fmt: skip

    logits = randn(n, 1000)
    params = [SamplingParams(0.7, seed, top_k=50, top_p=0.9) for seed in range(n)]
    sampling = batch_sampling(params, torch.device("cuda"))
    space = kernels.TokenSpace(stage=0)
    eager, replayed = state(), state()
    for _ in range(draws):
        kernels.sample(logits, sampling, space, state=eager, impl="triton")
    warm = state()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        kernels.sample(logits, sampling, space, state=warm, impl="triton")
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.sample(logits, sampling, space, state=replayed, impl="triton")
    for _ in range(draws):
        graph.replay()
    for f in fields(kernels.DecodeState):
        a, b = getattr(eager, f.name), getattr(replayed, f.name)
        assert a == b if isinstance(a, int) else torch.equal(a, b), f.name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_speaks_and_repeats(narrow: Checkpoint, dtype: str) -> None:
    bark = Bark.from_pretrained(narrow.folder, device="cuda", dtype=dtype)
    params = GenerationParams(seed=3, min_eos_p=0, max_semantic_tokens=40)
    first, second = (bark.generate("Hello", params=params) for _ in range(2))
    assert (first.fine_tokens == second.fine_tokens).all()
    assert abs(first.samples).max() > 0


# The engine


def cuda_engine(checkpoint: Checkpoint, **options: Any) -> Engine:
    return make_engine(
        checkpoint,
        impl="triton",
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
        max_batch_size=32,
        **options,
    )


def test_together_as_alone_bit_for_bit(narrow: Checkpoint) -> None:
    """In bfloat16, where one rounding more or less changes tokens; graphs on and off."""
    requests = random_requests(narrow, 64, longest=300, seed=1)
    alone = one_by_one(cuda_engine(narrow), requests)
    for options in ({}, {"cuda_graphs": False}, {"kv_cache_gib": gib_for(narrow, 6, 64)}):
        engine = cuda_engine(narrow, **options)
        together = run_all(engine, requests)
        assert [same(a, b) for a, b in zip(together, alone, strict=True)] == [True] * 64
        assert engine.used_pages == 0


def test_fine_graphs_change_no_bit(narrow: Checkpoint) -> None:
    """One window to eight, and a part of another batch of eight."""
    requests = random_requests(narrow, 11, longest=200, seed=4)
    plain, graphed = (cuda_engine(narrow, cuda_graphs=on) for on in (False, True))
    speeches = one_by_one(plain, requests)
    device = torch.device("cuda")

    def tasks(n: int) -> list[FineTask]:
        return [
            FineTask(s.coarse_tokens, r.voice, r.fine, narrow.config, device)
            for s, r in list(zip(speeches, requests, strict=True))[:n]
            if s.coarse_tokens.size
        ]

    for n in (1, 2, 3, 8, 11):
        made = []
        for engine in (plain, graphed):
            mine = tasks(n)
            with engine.runner.on_device():
                for _ in range(6):
                    engine.runner.fine.run(mine)
            made.append(torch.stack([task.codes[:1024] for task in mine]))
        assert torch.equal(*made), n


@pytest.mark.parametrize("lengths", [[257], [1], [40, 257, 300], [887, 887], [1] * 30])
def test_prefill_graphs_change_no_bit(narrow: Checkpoint, lengths: list[int]) -> None:
    """Neither of the tokens drawn nor of keys and values; padding writes to no page."""
    made = []
    for graphs in (False, True):
        decoder: Any = cuda_engine(narrow, cuda_graphs=graphs).runner.coarse
        cache = decoder.cache
        with torch.inference_mode():
            cache.keys.fill_(float("nan"))
            cache.values.fill_(float("nan"))
            tasks, pages, first = [], [], 0
            for i, n in enumerate(lengths):
                ids = [(i + 7 * p) % 2000 for p in range(n)]
                task = CausalTask(sampling=SamplingParams(0.8, seed=i), prompt=(ids,), limit=5)
                n_pages = -(-n // cache.page_size)
                tasks.append(task)
                pages.append(list(range(first, first + n_pages)))
                first += n_pages
            drawn = [output.tokens for output in decoder.prefill(tasks, pages)()]
        made.append((drawn, cache.keys[:, : first + 4], cache.values[:, : first + 4]))
    (drawn, *plain), (drawn_again, *graphed) = made
    assert drawn == drawn_again
    for a, b in zip(plain, graphed, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_the_codec_is_in_float32(narrow: Checkpoint) -> None:
    """... and padding changes nothing: the audio is a CPU's within 1e-5."""
    engine = cuda_engine(narrow)
    codes = torch.randint(0, 1000, (3, 8, 150), generator=torch.Generator().manual_seed(1))
    pieces = [codes[0], codes[1, :, :70], codes[2, :, :33]]
    with engine.runner.on_device(), exact_float32():
        waves = engine.runner.codec.run([piece.cuda() for piece in pieces])
    on_cpu = narrow.bark.engine.runner
    with on_cpu.on_device():
        expected = on_cpu.codec.run(pieces)
    for a, b in zip(waves, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-5)


def test_a_coarse_window_does_not_look_at_the_host(narrow: Checkpoint) -> None:
    engine = cuda_engine(narrow)
    request = narrow.bark.request(
        "Hello", None, GenerationParams(seed=1, min_eos_p=0, max_semantic_tokens=30)
    )
    one_by_one(engine, [request])  # graphs are recorded
    decoder = engine.runner.coarse
    launched = []
    decode = decoder.decode

    def spy(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            collect = decode(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        launched.append(arguments[2])
        return collect

    decoder.decode = spy  # type: ignore[method-assign]
    one_by_one(engine, [request])
    assert max(launched) == 59  # the prompt drew the first of the window's 60


def test_memory_does_not_grow(narrow: Checkpoint) -> None:
    engine = cuda_engine(narrow)
    warm_up(engine)
    requests = random_requests(narrow, 100, longest=40, seed=2)
    run_all(engine, requests)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        run_all(engine, requests)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20
