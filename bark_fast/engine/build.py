"""Build an engine: weights, stages, pages, and the options that the user left open."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.ambient import settled
from bark_fast.checkpoint.config import Config, GPTConfig
from bark_fast.checkpoint.stored import StoredTensors
from bark_fast.checkpoint.weights import load_weights
from bark_fast.engine.decoder import Decoder
from bark_fast.engine.engine import Engine
from bark_fast.engine.fine_passes import FinePasses
from bark_fast.engine.graphs import (
    CudaGraphRunner,
    EagerRunner,
    GraphRunner,
    NativeProgramRunner,
    capture_sizes,
)
from bark_fast.engine.kv_cache import PagePool
from bark_fast.engine.offload import OffloadedWeights
from bark_fast.engine.options import MAX_BATCH, EngineConfig, EngineOptions
from bark_fast.engine.prefills import prefill_shapes
from bark_fast.engine.runner import Runner, do_nothing
from bark_fast.engine.scheduler import Phase, Policy
from bark_fast.errors import InputError
from bark_fast.kernels import Backend, Impl
from bark_fast.models.block import is_of_a_product
from bark_fast.models.encodec import CodecDecoder
from bark_fast.models.fine_gpt import FineGPT
from bark_fast.models.gpt import GPT, KVPages
from bark_fast.process import check_fork
from bark_fast.stages import coarse, semantic
from bark_fast.stages.causal import CausalStage
from bark_fast.stages.codec import CodecStage
from bark_fast.stages.fine import FineStage
from bark_fast.types import Stage

_GIB = 2**30
_GPU_SHARE, _CPU_SHARE = 0.7, 0.25  # of the free memory, for keys and values
_CUDA_PAGE_SIZE = 64
_STEPS_A_GRAPH = 4  # the gap between two graphs counts once for so many


# No inference tensors: what reads them may be outside of `Runner.on_device`.
@settled(inference=False)
def load_engine(
    stored: StoredTensors,
    config: Config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    impl: Impl,
    options: EngineOptions,
    graphs: GraphRunner | None = None,
    offload: bool = False,
) -> Engine:
    """Read a checkpoint's weights and build the engine on them.

    Args:
        impl: the kernels that serve it.
        graphs: captures and repeats steps, prompts and passes; None chooses by `options`.
        offload: keep weights on the host except for those of the running stage.

    Raises:
        InputError: `options` ask for what this checkpoint or the memory cannot give.
        ProcessError: this process is a fork of another that used the device.
    """
    check_fork(device.type)
    for gpt in (config.semantic, config.coarse, config.fine):
        check_head_size(gpt, impl)
    pdl = options.dependent_launches and kernels.can_launch_dependents(device)
    ops = kernels.backend(impl, pdl=pdl)

    tensors = load_weights(
        stored,
        config,
        dtype=dtype,
        device=torch.device("cpu") if offload else device,
        is_packed=is_of_a_product,
        pack=ops.pack_weight,
    )
    semantic_stage, coarse_stage, fine, codec = _build_stages(tensors, config, ops)
    del tensors
    weights = None
    if offload:
        weights = OffloadedWeights(
            {
                "semantic": semantic_stage.model,
                "coarse": coarse_stage.model,
                "fine": fine.model,
                "codec": codec.model,
            },
            device,
        )

    on_cuda = device.type == "cuda"
    max_running = options.max_batch_size or MAX_BATCH["cuda" if on_cuda else "cpu"]
    caches = allocate_pages(
        {"semantic": config.semantic, "coarse": config.coarse},
        _longest(config),
        page_size=options.page_size or (_CUDA_PAGE_SIZE if on_cuda else None),
        max_running=max_running,
        budget_gib=options.kv_cache_gib,
        dtype=ops.kv_dtype(dtype),
        device=device,
    )
    if on_cuda and options.max_batch_size is None:
        max_running = _batch_that_fits(caches, _longest(config))
    engine_config = _settle(
        options,
        config,
        max_running=max_running,
        page_sizes={stage: cache.page_size for stage, cache in caches.items()},
        on_cuda=on_cuda,
        offload=offload,
    )
    if graphs is None:
        graphs = _graph_runner(device, impl, cuda_graphs=options.cuda_graphs)
    # On a CPU every batch is run as it is: an empty row costs as much as another, and capturing
    # next to nothing.
    exact = isinstance(graphs, (EagerRunner, NativeProgramRunner))
    sizes = None if exact else capture_sizes(max_running)

    def decoder(stage: CausalStage, prompts: Phase) -> Decoder:
        cache = caches[stage.name]
        return Decoder(
            stage,
            cache,
            max_batch=max_running,
            max_steps=engine_config.steps[stage.name],
            sizes=sizes,
            graphs=graphs,
            steps_a_graph=1 if exact else _STEPS_A_GRAPH,
            prefill_shapes=()
            if exact
            else prefill_shapes(
                engine_config.limits[prompts], -(-stage.model.config.block_size // cache.page_size)
            ),
        )

    runner = Runner(
        semantic=decoder(semantic_stage, Phase.SEMANTIC_PREFILL),
        coarse=decoder(coarse_stage, Phase.COARSE_PREFILL),
        fine=fine
        if exact
        else FinePasses(
            fine,
            n_frames=config.fine_rules.max_fine_input_length,
            max_windows=engine_config.limits[Phase.FINE],
            graphs=graphs,
        ),
        codec=CodecStage(
            codec.model, max_frames=engine_config.limits[Phase.CODEC] if on_cuda else 0
        ),
        config=engine_config,
        device=device,
        before_stage=do_nothing if weights is None else weights.bring,
    )
    pools = {
        stage: PagePool(cache.keys.shape[1], cache.page_size) for stage, cache in caches.items()
    }
    return Engine(runner, pools, config)


def _build_stages(
    tensors: Mapping[str, Tensor], config: Config, ops: Backend
) -> tuple[CausalStage, CausalStage, FineStage, CodecStage]:
    """Return the four stages, their weights packed for `ops`."""
    semantic_gpt = GPT(
        config.semantic,
        tensors,
        "semantic",
        head_ids=semantic.sampled_ids(config.semantic_rules),
        ops=ops,
    )
    coarse_gpt = GPT(
        config.coarse, tensors, "coarse_acoustics", head_ids=coarse.sampled_ids(config), ops=ops
    )
    fine = FineGPT(config.fine, tensors, "fine_acoustics", n_ids=config.codebook_size, ops=ops)
    codec = CodecDecoder(
        config.codec,
        tensors,
        "codec_model",
        n_codebooks=config.fine_rules.n_fine_codebooks,
        ops=ops,
    )
    return (
        semantic.build_stage(semantic_gpt, config.semantic_rules),
        coarse.build_stage(coarse_gpt, config),
        FineStage(fine),
        CodecStage(codec),
    )


def check_head_size(config: GPTConfig, impl: Impl) -> None:
    """Check that the kernels `impl` serve heads of the model's size.

    Raises:
        InputError: they do not. Triton's blocks are powers of two, and 16 is the least that its
            products take; the native kernels take numbers by twos.
    """
    size = config.head_size
    if impl in ("native", "int8") and size % 2:
        raise InputError(
            'impl must be "cpu" or "torch" for a model whose hidden_size / num_heads is odd, got '
            f"impl={impl!r} and {config.hidden_size} / {config.num_heads} = {size}"
        )
    if impl == "triton" and (size < 16 or size & (size - 1)):
        raise InputError(
            'impl must be "torch" for a model whose hidden_size / num_heads is not a power of two '
            f"from 16 on, got impl='triton' and {config.hidden_size} / {config.num_heads} = {size}"
        )


def _graph_runner(device: torch.device, impl: Impl, *, cuda_graphs: bool) -> GraphRunner:
    if impl in ("native", "int8"):
        return NativeProgramRunner()
    # Plain torch asks for lengths as it goes, which no graph can hold.
    use_graphs = device.type == "cuda" and impl == "triton" and cuda_graphs
    return CudaGraphRunner(device) if use_graphs else EagerRunner()


def allocate_pages(
    configs: Mapping[Stage, GPTConfig],
    longest: Mapping[Stage, int],
    *,
    page_size: int | None,
    max_running: int,
    budget_gib: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[Stage, KVPages]:
    """Allocate the pages of each causal stage, out of one budget.

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


def _batch_that_fits(caches: Mapping[Stage, KVPages], longest: Mapping[Stage, int]) -> int:
    """Return how many utterances of full length the pages hold, in steps of captured sizes."""
    n = min(
        cache.keys.shape[1] // -(-longest[stage] // cache.page_size)
        for stage, cache in caches.items()
    )
    return next((size for size in reversed(capture_sizes(MAX_BATCH["cuda"])) if size <= n), 1)


def _longest(config: Config) -> dict[Stage, int]:
    """Return the positions of the longest sequence of each causal stage.

    The last token of a sequence is never run.
    """
    text = config.semantic_rules
    return {
        "semantic": text.max_input_semantic_length + 1 + text.max_new_tokens - 1,
        "coarse": coarse.longest_window(config.coarse_rules),
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


def _settle(
    options: EngineOptions,
    config: Config,
    *,
    max_running: int,
    page_sizes: Mapping[Stage, int],
    on_cuda: bool,
    offload: bool,
) -> EngineConfig:
    """Fill in the options that the user left open."""
    steps = options.steps_per_look or 8
    window = config.coarse_rules.sliding_window_len
    max_prefill_tokens = options.max_prefill_tokens or (8192 if on_cuda else 1024)
    policy: Policy | None = None if options.policy == "auto" else options.policy
    return EngineConfig(
        limits={
            Phase.SEMANTIC_PREFILL: max_prefill_tokens,
            Phase.COARSE_PREFILL: max_prefill_tokens,
            Phase.SEMANTIC_DECODE: max_running,
            Phase.COARSE_DECODE: max_running,
            Phase.FINE: options.max_fine_windows or (8 if on_cuda else 1),
            Phase.CODEC: options.max_codec_frames or (8192 if on_cuda else 1),
        },
        max_running=max_running,
        # A window's length is known before it starts.
        steps={"semantic": steps, "coarse": window if on_cuda else steps},
        page_sizes=page_sizes,
        depth=1 if on_cuda else 0,
        # Weights are brought for a stage at a time.
        policy="staged" if offload else policy,
        threads=None if on_cuda else options.threads,
    )
