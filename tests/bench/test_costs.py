"""Compare the formulas with transformers' modules, counted operation by operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bark_fast import GenerationParams
from bark_fast.checkpoint.codec_module import build_codec_decoder
from bark_fast.checkpoint.random import settings_for
from bark_fast.checkpoint.reading import parse_config
from bench.cases import costs
from bench.cases.requests import floor_s, plan_coarse, request_costs
from bench.harness.machine import Limits
from helpers.checkpoints import Checkpoint

# torch's switch for oneDNN warns of a device that nobody has.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")


def count_flops(run: Callable[[], object]) -> int:
    # Without oneDNN the LSTM becomes products that can be counted.
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()


def numel(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(params=["small", "narrow"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    """Return checkpoints with biases and without."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("batch", [1, 3])
def test_decode_step(checkpoint: Checkpoint, batch: int) -> None:
    model, config = checkpoint.model.semantic, checkpoint.config.semantic
    before = 11
    ids = torch.zeros(batch, before, dtype=torch.int64)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    counted = count_flops(lambda: model(ids[:, :1], past_key_values=cache, use_cache=True))
    columns = config.output_vocab_size
    cost = costs.decode_step(config, batch=batch, context=before + 1, columns=columns, size=2)
    assert cost.flops == counted
    weights = numel(model.layers, model.layernorm_final, model.lm_head)
    assert cost.weight_bytes == 2 * weights
    keys_and_values = 2 * config.num_layers * config.hidden_size * (before + 1)
    embeddings = 2 * config.hidden_size
    assert cost.state_bytes == 2 * batch * (keys_and_values + embeddings)


def test_products_of_a_prompt(checkpoint: Checkpoint) -> None:
    """transformers scores every pair and makes logits of every token; neither has to be."""
    model, config = checkpoint.model.coarse_acoustics, checkpoint.config.coarse
    tokens, columns = 13, config.output_vocab_size
    counted = count_flops(lambda: model(torch.zeros(2, tokens, dtype=torch.int64)))
    head = 2 * config.hidden_size * columns * tokens
    blocks = costs.block_flops(config, tokens, wanted=tokens)
    assert (
        2 * (blocks + costs.attention_flops(config, tokens**2, wanted=tokens**2) + head) == counted
    )
    fewer = costs.block_flops(config, tokens, wanted=1)
    assert blocks - fewer == 20 * config.hidden_size**2 * (tokens - 1)


def test_a_prompt_is_the_sum_of_its_steps(checkpoint: Checkpoint) -> None:
    config = checkpoint.config.semantic
    steps = [
        costs.decode_step(config, batch=1, context=context, columns=0, size=2)
        for context in range(5, 12)
    ]
    prompt = costs.prefill(config, tokens=7, cached=4, columns=0, size=2)
    # The last block needs but keys and values of all tokens but the last, whose 11 keys remain.
    spared = 20 * config.hidden_size**2 * 6
    spared += 4 * config.hidden_size * (sum(range(5, 12)) - 11)
    assert prompt.flops == sum(step.flops for step in steps) - spared
    assert prompt.weight_bytes == steps[0].weight_bytes


def test_fine_pass(checkpoint: Checkpoint) -> None:
    model, config = checkpoint.model.fine_acoustics, checkpoint.config.fine
    frames, batch, codebook = 24, 2, 3
    codes = torch.zeros(batch, frames, config.n_codes_total, dtype=torch.int64)
    counted = count_flops(lambda: model(codebook, codes))
    columns = config.output_vocab_size
    cost = costs.fine_pass(
        config, batch=batch, codebook=codebook, columns=columns, size=4, frames=frames
    )
    assert cost.flops == counted
    weights = numel(model.layers, model.layernorm_final, model.lm_heads[codebook - 1])
    assert cost.weight_bytes == 4 * weights
    half = costs.fine_pass(
        config, batch=batch, codebook=codebook, columns=columns, size=4, frames=frames, filled=12
    )
    width = config.hidden_size
    assert (
        cost.flops - half.flops
        == (2 * width * columns + 20 * width**2 + 4 * width * frames) * 12 * batch
    )


@pytest.mark.parametrize(("frames", "batch"), [(16, 1), (25, 3)])
def test_codec(checkpoint: Checkpoint, frames: int, batch: int) -> None:
    config = checkpoint.config
    codebooks = config.fine_rules.n_fine_codebooks
    codes = torch.zeros(batch, codebooks, frames, dtype=torch.int64)
    counted = count_flops(lambda: checkpoint.model.codec_decode(codes))
    cost = costs.codec(config.codec, frames=frames, codebooks=codebooks, batch=batch)
    assert cost.flops == counted
    assert cost.weight_bytes == 4 * numel(build_codec_decoder(config.codec))


@pytest.mark.parametrize(("size", "megabytes"), [("small", 170), ("large", 604)])
def test_a_decode_step_reads_what_the_design_says(size: str, megabytes: float) -> None:
    config = parse_config(*settings_for(size))
    assert costs.block_weights(config.semantic) * 2 / 1e6 == pytest.approx(megabytes, rel=0.002)
    columns = costs.head_columns(config, "semantic")
    assert columns == 10_001
    step = costs.decode_step(config.semantic, batch=1, context=1, columns=columns, size=2)
    head = 2 * columns * config.semantic.hidden_size / 1e6
    assert step.weight_bytes / 1e6 == pytest.approx(megabytes + head, rel=0.002)


@pytest.mark.parametrize("n_voice", [None, 5, 40])
@pytest.mark.parametrize("n_semantic", [1, 7, 50, 120])
def test_coarse_windows_are_those_that_the_engine_runs(
    small: Checkpoint, n_semantic: int, n_voice: int | None
) -> None:
    voice = None if n_voice is None else small.bark.load_voice(small.voice(n_voice))
    before = small.bark.stats().stages["coarse"]
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=n_semantic, seed=1)
    speech = small.bark.generate("some text", voice=voice, params=params)
    after = small.bark.stats().stages["coarse"]
    plan = plan_coarse(len(speech.semantic_tokens), voice, small.config)
    assert sum(plan.prompts) == after.prefill_tokens - before.prefill_tokens
    assert len(plan.prompts) + len(plan.contexts) == after.tokens - before.tokens


def test_a_request_costs_what_its_stages_do() -> None:
    config = parse_config(*settings_for("small"))
    short, long = (request_costs(n, None, config, size=2) for n in (50, 100))
    assert set(short) == {"semantic", "coarse", "fine", "codec"}
    # A window is a window, however little of it is heard; only its logits are fewer.
    assert short["fine"].weight_bytes == long["fine"].weight_bytes
    assert long["codec"].flops == 2 * short["codec"].flops
    steps = short["semantic"].weight_bytes / long["semantic"].weight_bytes
    assert steps == pytest.approx(50 / 100, rel=1e-3)


def test_floor_of_requests_together() -> None:
    config = parse_config(*settings_for("small"))
    limits = Limits(1e9, 2e9, 1e12, 1e11)
    one = floor_s([(100, None)], config, limits, size=2)
    four = floor_s([(100, None)] * 4, config, limits, size=2)
    assert one < four < 4 * one
    assert limits.floor_s(4e9, 1e12) == 2.0
    assert limits.floor_s(0, 1e12, float32=True) == 10.0
