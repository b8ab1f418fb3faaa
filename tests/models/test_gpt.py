"""The causal transformer against transformers', and its ways of running a sequence."""

from __future__ import annotations

import random

import pytest
import torch

from bark_fast.kernels import DecodeState
from bark_fast.models.gpt import GPT, Chunk, KVPages, PackedPrompts, PackedShape
from helpers.checkpoints import Checkpoint

PAGE_SIZE = 8


@pytest.fixture
def gpt(small: Checkpoint) -> GPT:
    model: GPT = small.bark.engine.runner.coarse.stage.model  # type: ignore[attr-defined]
    return model


def cache_of(gpt: GPT, n_pages: int) -> KVPages:
    dtype = gpt.ops.kv_dtype(torch.float32)
    return KVPages.allocate(gpt.config, n_pages, PAGE_SIZE, dtype=dtype, device=gpt.device)


def prefill(
    gpt: GPT, chunks: list[Chunk], cache: KVPages, shape: PackedShape | None = None
) -> torch.Tensor:
    return gpt.prefill(PackedPrompts.pack(chunks, PAGE_SIZE, shape=shape), cache)


def random_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(230), k=n)


def test_logits_are_those_of_transformers(small: Checkpoint, gpt: GPT) -> None:
    ids = random_ids(40)
    with torch.inference_mode():
        expected = small.model.coarse_acoustics(input_ids=torch.tensor([ids])).logits[0]
        logits = gpt.score(Chunk([ids], 0, range(5)), cache_of(gpt, 5))
    first = small.config.semantic_rules.semantic_vocab_size
    assert gpt.n_columns == expected.shape[1] - first
    torch.testing.assert_close(logits, expected[:, first:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("cut", [1, 7, 8, 25])
def test_a_prompt_in_two_parts(gpt: GPT, cut: int) -> None:
    ids, pages = random_ids(26, seed=1), [3, 0, 4, 1]
    with torch.inference_mode():
        whole = prefill(gpt, [Chunk([ids], 0, pages)], cache_of(gpt, 5))
        cache = cache_of(gpt, 5)
        prefill(gpt, [Chunk([ids[:cut]], 0, pages)], cache)
        parts = prefill(gpt, [Chunk([ids[cut:]], cut, pages)], cache)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_prompts_together(gpt: GPT) -> None:
    prompts = [random_ids(n, seed=n) for n in (5, 17, 1)]
    tables = [[0], [1, 2, 3], [4]]
    with torch.inference_mode():
        chunks = [Chunk([ids], 0, table) for ids, table in zip(prompts, tables, strict=True)]
        together = prefill(gpt, chunks, cache_of(gpt, 5))
        alone = [prefill(gpt, [chunk], cache_of(gpt, 5)) for chunk in chunks]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_a_step_is_a_prompt_of_one_more(gpt: GPT) -> None:
    """... and an empty row beside it writes nothing."""
    ids, table = random_ids(12, seed=2), [2, 1]
    with torch.inference_mode():
        expected = prefill(gpt, [Chunk([ids], 0, table)], cache_of(gpt, 4))
        cache = cache_of(gpt, 4)
        prefill(gpt, [Chunk([ids[:-1]], 0, table)], cache)
        cache.keys[:, [0, 3]] = cache.values[:, [0, 3]] = torch.nan
        at = len(ids) - 1
        state = DecodeState(
            token_ids=torch.tensor([ids[-1], 0]),
            positions=torch.tensor([at, 0]),
            seq_lens=torch.tensor([at + 1, 0]),
            slot_mapping=torch.tensor([table[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE, -1]),
            block_tables=torch.tensor([table, [0, 0]]),
            num_generated=torch.zeros(2, dtype=torch.int64),
            limits=torch.ones(2, dtype=torch.int64),
            finished=torch.tensor([0, 1], dtype=torch.int32),
            history=torch.zeros(2, 1, dtype=torch.int64),
            page_size=PAGE_SIZE,
        )
        logits = gpt.step(state, cache)
    torch.testing.assert_close(logits[:1], expected, rtol=0, atol=1e-5)
    assert cache.keys[:, [0, 3]].isnan().all()


def test_every_weight_can_be_changed(gpt: GPT) -> None:
    seen: list[object] = []

    def see(weight: object) -> object:
        seen.append(weight)
        return weight

    gpt.map_weights(see)
    per_block = 12  # this checkpoint has biases
    assert len(seen) == gpt.config.num_layers * per_block + 2 + 2 + 1


def test_padding_changes_no_bit_and_writes_nothing(gpt: GPT) -> None:
    prompts = [random_ids(n, seed=n) for n in (5, 17)]
    chunks = [Chunk([ids], 0, table) for ids, table in zip(prompts, [[0], [1, 2, 3]], strict=True)]
    plain, padded = cache_of(gpt, 5), cache_of(gpt, 5)
    for cache in (plain, padded):
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
    with torch.inference_mode():
        expected = prefill(gpt, chunks, plain)
        logits = prefill(gpt, chunks, padded, PackedShape(tokens=40, sequences=4, pages=4))
    assert torch.equal(logits[:2], expected)
    assert torch.equal(padded.keys.nan_to_num(7.0), plain.keys.nan_to_num(7.0))
    assert torch.equal(padded.values.nan_to_num(7.0), plain.values.nan_to_num(7.0))
