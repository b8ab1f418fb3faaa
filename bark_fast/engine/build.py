"""Puts an engine together: weights, stages, pages, and what `EngineOptions` leave open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch

from bark_fast import kernels
from bark_fast.checkpoint.config import Config, GPTConfig
from bark_fast.checkpoint.stored import StoredTensors
from bark_fast.checkpoint.weights import load_weights
from bark_fast.engine.decoder import Decoder
from bark_fast.engine.engine import Engine, Runners, Setup
from bark_fast.engine.graphs import CudaGraphRecorder, NativeRecorder, NoRecorder, Recorder, ladder
from bark_fast.engine.kv_cache import PagePool
from bark_fast.engine.offload import Network, Shelf, with_weights_brought
from bark_fast.engine.options import EngineOptions
from bark_fast.engine.scheduler import Work
from bark_fast.errors import InputError
from bark_fast.kernels import Impl
from bark_fast.models.encodec import CodecDecoder
from bark_fast.models.fine_gpt import FineGPT
from bark_fast.models.gpt import GPT, KVPages
from bark_fast.stages import coarse, semantic
from bark_fast.stages.causal import CausalStage
from bark_fast.stages.codec import CodecStage
from bark_fast.stages.fine import FineStage

_GIB = 2**30
_GPU_SHARE, _CPU_SHARE = 0.7, 0.25  # of the free memory, for keys and values
_CUDA_PAGE = 64


def load_engine(
    stored: StoredTensors,
    config: Config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    impl: Impl,
    options: EngineOptions,
    recorder: Recorder | None = None,
    offload: bool = False,
) -> Engine:
    """Read a checkpoint's weights and build the engine on them.

    Args:
        impl: the kernels that serve it.
        recorder: what repeats decode steps; None chooses by `options`.
        offload: keep weights on the host but for those of the running stage.

    Raises:
        InputError: `options` ask for what this checkpoint or the memory cannot give.
    """
    # What the networks pack must not depend on an autocast that the caller is in.
    with torch.autocast("cpu", enabled=False), torch.autocast(device.type, enabled=False):
        tensors = load_weights(
            stored, config, dtype=dtype, device=torch.device("cpu") if offload else device
        )
        semantic_ids = semantic.sampled_ids(config.semantic_rules)
        n_fine = config.fine_rules.n_fine_codebooks
        stages = {
            "semantic": semantic.build_stage(
                GPT(config.semantic, tensors, "semantic", head_ids=semantic_ids, impl=impl),
                config.semantic_rules,
            ),
            "coarse": coarse.build_stage(
                GPT(
                    config.coarse,
                    tensors,
                    "coarse_acoustics",
                    head_ids=coarse.sampled_ids(config),
                    impl=impl,
                ),
                config,
            ),
        }
        fine = FineGPT(
            config.fine, tensors, "fine_acoustics", n_ids=config.codebook_size, impl=impl
        )
        codec = CodecDecoder(config.codec, tensors, "codec_model", n_codebooks=n_fine, impl=impl)
        del tensors  # what was packed is not needed twice
    shelf = None
    if offload:
        networks: dict[str, Network] = {name: own.model for name, own in stages.items()}
        shelf = Shelf({**networks, "fine": fine, "codec": codec}, device)

    on_cuda = device.type == "cuda"
    setup = _settle(options, config, on_cuda=on_cuda)
    page_size = options.page_size or (_CUDA_PAGE if on_cuda else None)
    kv_dtype = kernels.kv_dtype(dtype, impl=impl)
    caches = allocate_pages(
        {stage: own.model.config for stage, own in stages.items()},
        _longest(config),
        page_size=page_size,
        max_running=setup.max_running,
        budget_gib=options.kv_cache_gib,
        dtype=kv_dtype,
        device=device,
    )
    if recorder is None:
        recorder = _recorder(device, impl, cuda_graphs=options.cuda_graphs)
    # On a CPU every batch is run as it is: an empty row costs as much as another, and recording
    # next to nothing.
    exact = isinstance(recorder, (NoRecorder, NativeRecorder))
    sizes = None if exact else ladder(setup.max_running)

    def decoder(stage: CausalStage) -> Decoder:
        return Decoder(
            stage,
            caches[stage.name],
            max_batch=setup.max_running,
            max_steps=setup.steps[stage.name],
            sizes=sizes,
            recorder=recorder,
        )

    runners = Runners(
        decoder(stages["semantic"]), decoder(stages["coarse"]), FineStage(fine), CodecStage(codec)
    )
    if shelf is not None:
        runners = with_weights_brought(runners, shelf)
        setup = replace(setup, policy="staged")
    pools = {
        stage: PagePool(cache.keys.shape[1], cache.page_size) for stage, cache in caches.items()
    }
    return Engine(runners, pools, config, setup, device=device)


def _recorder(device: torch.device, impl: Impl, *, cuda_graphs: bool) -> Recorder:
    if impl in ("native", "int8"):
        return NativeRecorder()
    # Plain torch asks for lengths as it goes, which no graph can hold.
    graphs = device.type == "cuda" and impl == "triton" and cuda_graphs
    return CudaGraphRecorder(device) if graphs else NoRecorder()


def allocate_pages(
    configs: Mapping[str, GPTConfig],
    longest: Mapping[str, int],
    *,
    page_size: int | None,
    max_running: int,
    budget_gib: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, KVPages]:
    """The pages of each causal stage, out of one budget.

    Args:
        longest: positions that a sequence of the stage can come to have.
        page_size: None makes a page as long as the model's positions.

    Raises:
        InputError: the budget does not hold one utterance.
    """
    sizes = {stage: min(page_size or c.block_size, c.block_size) for stage, c in configs.items()}
    each = {stage: -(-longest[stage] // sizes[stage]) for stage in configs}
    page_bytes = {
        stage: 2 * c.num_layers * sizes[stage] * c.hidden_size * dtype.itemsize
        for stage, c in configs.items()
    }
    one = sum(each[stage] * page_bytes[stage] for stage in configs)
    # One utterance must fit; where memory looks short, whether it does is for the memory to say.
    budget = max(one, _free_bytes(device)) if budget_gib is None else budget_gib * _GIB
    running = min(max_running, budget / one)
    if running < 1:
        raise InputError(
            f"kv_cache_gib must be at least {one / _GIB:.3g} for this checkpoint, got {budget_gib}"
        )
    return {
        stage: KVPages.allocate(
            c, int(running * each[stage]), sizes[stage], dtype=dtype, device=device
        )
        for stage, c in configs.items()
    }


def _longest(config: Config) -> dict[str, int]:
    """Positions of the longest sequence of each causal stage; its last token is never run."""
    text, window = config.semantic_rules, config.coarse_rules
    return {
        "semantic": text.max_input_semantic_length + 1 + text.max_new_tokens - 1,
        "coarse": window.max_coarse_input_length
        + 1
        + window.max_coarse_history
        + window.sliding_window_len
        - 1,
    }


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return _GPU_SHARE * free
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, AttributeError, OSError):  # not on Linux
        return 4.0 * _GIB
    return _CPU_SHARE * pages * os.sysconf("SC_PAGE_SIZE")


def _settle(options: EngineOptions, config: Config, *, on_cuda: bool) -> Setup:
    """Fill in what the options leave open."""
    max_running = options.max_batch_size or (64 if on_cuda else 16)
    steps = options.steps_per_look or (16 if on_cuda else 8)
    window = config.coarse_rules.sliding_window_len
    return Setup(
        limits={
            Work.SEMANTIC_PREFILL: options.max_prefill_tokens or (8192 if on_cuda else 1024),
            Work.COARSE_PREFILL: options.max_prefill_tokens or (8192 if on_cuda else 1024),
            Work.SEMANTIC_DECODE: max_running,
            Work.COARSE_DECODE: max_running,
            Work.FINE: options.max_fine_windows or (8 if on_cuda else 1),
            Work.CODEC: options.max_codec_frames or (8192 if on_cuda else 1),
        },
        max_running=max_running,
        # A window's length is known before it starts.
        steps={"semantic": steps, "coarse": window if on_cuda else steps},
        depth=1 if on_cuda else 0,
        policy=None if options.policy == "auto" else options.policy,
    )
