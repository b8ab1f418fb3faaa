"""The settings that `load_engine` fills in: limits, pages, and models that it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bark_fast import InputError
from bark_fast.engine.build import allocate_pages, check_head_size
from bark_fast.engine.scheduler import Phase
from helpers.checkpoints import Checkpoint
from helpers.engines import gib_for, make_engine

CPU = torch.device("cpu")


def test_options_left_open_suit_a_cpu(small: Checkpoint) -> None:
    config = make_engine(small).runner.config
    assert config.max_running == 16
    assert config.depth == 0
    assert config.policy is None
    assert config.limits[Phase.SEMANTIC_DECODE] == config.limits[Phase.COARSE_DECODE] == 16
    assert config.limits[Phase.FINE] == 1
    # A page holds a whole sequence, which spares gathering them.
    assert config.page_sizes == {
        "semantic": small.config.semantic.block_size,
        "coarse": small.config.coarse.block_size,
    }


def test_options_that_are_given_hold(small: Checkpoint) -> None:
    config = make_engine(
        small, max_batch_size=3, max_prefill_tokens=50, max_fine_windows=2, max_codec_frames=70,
        page_size=8, steps_per_look=5, policy="throughput",
    ).runner.config  # fmt: skip
    assert (config.max_running, config.policy) == (3, "throughput")
    assert config.limits == {
        Phase.SEMANTIC_PREFILL: 50,
        Phase.COARSE_PREFILL: 50,
        Phase.SEMANTIC_DECODE: 3,
        Phase.COARSE_DECODE: 3,
        Phase.FINE: 2,
        Phase.CODEC: 70,
    }
    assert config.steps == {"semantic": 5, "coarse": 5}
    assert config.page_sizes == {"semantic": 8, "coarse": 8}


def test_pages_come_out_of_one_budget(small: Checkpoint) -> None:
    """Memory for two utterances and a half makes pages for two in each stage."""
    configs = {"semantic": small.config.semantic, "coarse": small.config.coarse}
    longest = {"semantic": 40, "coarse": 24}
    one = sum(2 * c.num_layers * c.hidden_size * 4 * longest[s] for s, c in configs.items())
    pages = allocate_pages(
        configs, longest, page_size=8, max_running=16, budget_gib=2.5 * one / 2**30,
        dtype=torch.float32, device=CPU,
    )  # fmt: skip
    assert {stage: cache.keys.shape[1] for stage, cache in pages.items()} == {
        "semantic": 12,
        "coarse": 7,
    }
    with pytest.raises(InputError, match=r"kv_cache_gib must be at least .* got"):
        make_engine(small, kv_cache_gib=0.5 * gib_for(small, 1, 8), page_size=8)


@pytest.mark.parametrize(
    ("impl", "heads", "fits"),
    [("triton", 3, True), ("triton", 2, False), ("triton", 6, False), ("native", 16, False),
     ("native", 3, True), ("torch", 16, True)],
)  # fmt: skip
def test_head_sizes(small: Checkpoint, impl, heads: int, fits: bool) -> None:
    """A width of 48 makes heads of 16, 24, 8 and 3."""
    config = replace(small.config.semantic, num_heads=heads)
    if fits:
        check_head_size(config, impl)
    else:
        with pytest.raises(InputError, match=f"got impl='{impl}' and 48 / {heads}"):
            check_head_size(config, impl)
