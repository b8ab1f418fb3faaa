"""Record the operations of a decode step, a prefill and a fine pass, with their launches.

The stages themselves run on tensors without memory, with Triton's backend behind them, and nothing
is launched: what is recorded is what an engine would launch (`tests/bench/test_predict.py` compares
the two).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.checkpoint.config import Config, GPTConfig
from bark_fast.checkpoint.random import settings_for, stored_shapes
from bark_fast.checkpoint.reading import parse_config
from bark_fast.kernels import aot
from bark_fast.kernels.triton.device import assuming
from bark_fast.models.fine_gpt import FineGPT
from bark_fast.models.gpt import GPT, KVPages
from bark_fast.stages import coarse, semantic
from bark_fast.stages.causal import CausalStage, CausalTask
from bark_fast.stages.fine import FineStage, FineTask
from bark_fast.stages.sampling import SamplingParams, batch_sampling
from bench.cases.kernels import attention_cost, linear_cost

META = torch.device("meta")
DTYPE = torch.bfloat16
PAGE_SIZE = 64
_STEPS = {"semantic": 8, "coarse": 60}  # between two looks, on CUDA
_SAMPLING = SamplingParams(0.7, seed=0)


@dataclass(frozen=True)
class Operation:
    """One call of the kernels' interface.

    Attributes:
        name: the operation's, and the shape of its weight.
        rows: tokens, or sequences, that it is for.
        n_bytes: that must be read or written, each once.
        keys: keys that each query of a decode step's attention sees.
        launches: what it launches.
        count: how often a step makes this call.
    """

    name: str
    rows: int
    n_bytes: int
    flops: int
    decode: bool
    launches: tuple[aot.Launch, ...]
    keys: int = 0
    count: int = 1


def independent(launch: aot.Launch) -> aot.Launch:
    """Return the launch without programmatic dependent launch, which older GPUs do not know."""
    options = {k: v for k, v in launch.options.items() if k not in ("launch_pdl", "maxnreg")}
    constants = launch.constants | ({"PDL": False} if "PDL" in launch.constants else {})
    return replace(launch, options=options, constants=constants)


class _Recorder:
    """The kernels' interface, of which every call is noted.

    Args:
        keys: that each sequence of a decode step has.
    """

    def __init__(self, keys: int) -> None:
        self.operations: list[Operation] = []
        self._behind, self._keys = kernels.backend("triton", pdl=True), keys

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._behind, name)
        cost = _COSTS.get(name)
        if cost is None:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            launches: list[aot.Launch] = []
            with aot.recording(launches), assuming(aot.DEVICES[90]):
                result = method(*args, **kwargs)
            made = cost(self._keys, *args, **kwargs)
            self._add(replace(made, launches=tuple(launches)))
            return result

        return call

    def _add(self, made: Operation) -> None:
        """Add an operation, or count it if it is known; launches differ by the object alone."""
        keys = [launch.key for launch in made.launches]
        for i, known in enumerate(self.operations):
            same = replace(known, count=1, launches=()) == replace(made, launches=())
            if same and [launch.key for launch in known.launches] == keys:
                self.operations[i] = replace(known, count=known.count + 1)
                return
        self.operations.append(made)


def _product(
    keys: int, x: Tensor, weight: Tensor, *_: Any, decode: bool = False, **extras: Any
) -> Operation:
    (rows, k), n = x.shape, len(weight)
    n_bytes, flops = linear_cost(
        rows, n, k, x.itemsize, residual=extras.get("residual") is not None
    )
    return Operation(f"product {n} x {k}", rows, n_bytes, flops, decode, ())


def _paged(
    keys: int, q: Tensor, *pages: Tensor, seq_lens: Tensor, decode: bool = False, **_: Any
) -> Operation:
    rows, batch, width = len(q), len(seq_lens), q.shape[1] * q.shape[2]
    each = rows // batch
    seen = float(keys) if decode else (each + 1) / 2
    n_bytes, flops = attention_cost(each, keys if decode else each, width, q.itemsize, seen=seen)
    return Operation(
        "attention", rows, n_bytes * batch, flops * batch, decode, (), keys if decode else 0
    )


def _bidirectional(keys: int, q: Tensor, *_: Tensor) -> Operation:
    batch, length, heads, size = q.shape
    n_bytes, flops = attention_cost(length, length, heads * size, q.itemsize)
    return Operation("attention", batch * length, n_bytes * batch, flops * batch, False, ())


def _embedding(keys: int, ids: Tensor, tables: Tensor, **_: Any) -> Operation:
    streams, rows = ids.shape
    return Operation(
        "embedding", rows, (streams + 2) * rows * tables.shape[-1] * tables.itemsize, 0, True, ()
    )


def _norm(keys: int, x: Tensor, *_: Any) -> Operation:
    return Operation("layer norm", len(x), 2 * x.numel() * x.itemsize, 0, True, ())


def _sample(keys: int, logits: Tensor, *_: Any, **__: Any) -> Operation:
    return Operation("sample", len(logits), logits.numel() * logits.itemsize, 0, True, ())


_COSTS: dict[str, Callable[..., Operation]] = {
    "fused_linear": _product,
    "qkv_to_pages": _product,
    "paged_attention": _paged,
    "bidirectional_attention": _bidirectional,
    "embedding_sum": _embedding,
    "layer_norm": _norm,
    "sample": _sample,
}


@cache
def config_of(size: str) -> Config:
    """Return the configuration of Bark's "small" or "large" model."""
    return parse_config(*settings_for(size))


@cache
def _tensors(size: str) -> dict[str, Tensor]:
    settings, _ = settings_for(size)
    return {
        name: torch.empty(shape, dtype=DTYPE, device=META)
        for name, shape in stored_shapes(settings).items()
    }


@cache
def decode_step(size: str, stage: str, rows: int, *, keys: int) -> tuple[Operation, ...]:
    """Return the operations of a step of so many rows, each of which sees so many keys."""
    recorder = _Recorder(keys)
    causal, cache = _causal(size, stage, recorder)

    def vector(dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(rows, dtype=dtype, device=META)

    block = causal.model.config.block_size
    state = kernels.DecodeState(
        token_ids=vector(), positions=vector(), seq_lens=vector(), slot_mapping=vector(),
        block_tables=torch.empty(rows, block // PAGE_SIZE, dtype=torch.int64, device=META),
        num_generated=vector(), limits=vector(), finished=vector(torch.int32),
        history=torch.empty(rows, _STEPS[stage], dtype=torch.int64, device=META),
        page_size=PAGE_SIZE,
    )  # fmt: skip
    workspace = causal.model.ops.decode_workspace(rows, causal.model.config.num_heads, device=META)
    sampling = batch_sampling([_SAMPLING] * rows, META)
    causal.step(state, sampling, cache, workspace=workspace)
    return tuple(recorder.operations)


@cache
def prefill(size: str, stage: str, prompts: int, *, tokens: int) -> tuple[Operation, ...]:
    """Return the operations of so many prompts of so many tokens."""
    recorder = _Recorder(tokens)
    causal, cache = _causal(size, stage, recorder)
    streams = 2 if stage == "semantic" else 1
    task = CausalTask(sampling=_SAMPLING, prompt=([0] * tokens,) * streams, limit=1)
    causal.prefill([task] * prompts, [[0] * -(-tokens // PAGE_SIZE)] * prompts, cache)
    return tuple(recorder.operations)


@cache
def fine_pass(size: str, windows: int, *, codebook: int | None = None) -> tuple[Operation, ...]:
    """Return the operations of a pass over so many whole windows; None is the last codebook."""
    recorder, config = _Recorder(0), config_of(size)
    ops: Any = recorder
    model = FineGPT(
        config.fine, _tensors(size), "fine_acoustics", n_ids=config.codebook_size, ops=ops
    )
    frames = config.fine_rules.max_fine_input_length
    codes = np.zeros((config.coarse_rules.n_coarse_codebooks, frames), dtype=np.int64)
    tasks = [FineTask(codes, None, _SAMPLING, config, META) for _ in range(windows)]
    for task in tasks:
        task.codebook = config.fine_rules.n_fine_codebooks - 1 if codebook is None else codebook
    FineStage(model).run(tasks)
    return tuple(recorder.operations)


def _causal(size: str, stage: str, recorder: _Recorder) -> tuple[CausalStage, KVPages]:
    config, ops = config_of(size), recorder
    of_stage: GPTConfig = config.semantic if stage == "semantic" else config.coarse
    any_ops: Any = ops

    def gpt(prefix: str, ids: Any) -> GPT:
        return GPT(of_stage, _tensors(size), prefix, head_ids=ids, ops=any_ops)

    if stage == "semantic":
        ids = semantic.sampled_ids(config.semantic_rules)
        built = semantic.build_stage(gpt("semantic", ids), config.semantic_rules)
    else:
        built = coarse.build_stage(gpt("coarse_acoustics", coarse.sampled_ids(config)), config)
    return built, KVPages.allocate(of_stage, 64, PAGE_SIZE, dtype=DTYPE, device=META)
