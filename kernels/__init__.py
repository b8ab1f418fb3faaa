"""The operations that Bark's networks are made of; models call these and nothing else.

`ops.Backend` is the contract of each operation, and `backend(impl)` returns an implementation. The
same operations are here as functions with an argument `impl`.
"""

from __future__ import annotations

from bark_fast.kernels.cpu.openmp import (
    cpu_threads,
    release_threads,
    survives_fork,
    why_no_openmp,
)
from bark_fast.kernels.cpu.program import record as record_native
from bark_fast.kernels.dispatch import (
    backend,
    bidirectional_attention,
    can_launch_dependents,
    can_run_triton,
    choose_impl,
    codebook_sum,
    decode_workspace,
    embedding_sum,
    fused_linear,
    kv_dtype,
    layer_norm,
    pack_weight,
    paged_attention,
    qkv_to_pages,
    random_words,
    sample,
    why_not_native,
    why_onednn,
    why_slow,
)
from bark_fast.kernels.ops import LAYER_NORM_EPS, Backend, CodecOps, Impl, Norm, Weight
from bark_fast.kernels.reference import process_logits
from bark_fast.kernels.state import (
    NO_TOKEN,
    DecodeState,
    Filter,
    PackedWeight,
    SamplingMetadata,
    TokenSpace,
)

__all__ = [
    "LAYER_NORM_EPS",
    "NO_TOKEN",
    "Backend",
    "CodecOps",
    "DecodeState",
    "Filter",
    "Impl",
    "Norm",
    "PackedWeight",
    "SamplingMetadata",
    "TokenSpace",
    "Weight",
    "backend",
    "bidirectional_attention",
    "can_launch_dependents",
    "can_run_triton",
    "choose_impl",
    "codebook_sum",
    "cpu_threads",
    "decode_workspace",
    "embedding_sum",
    "fused_linear",
    "kv_dtype",
    "layer_norm",
    "pack_weight",
    "paged_attention",
    "process_logits",
    "qkv_to_pages",
    "random_words",
    "record_native",
    "release_threads",
    "sample",
    "survives_fork",
    "why_no_openmp",
    "why_not_native",
    "why_onednn",
    "why_slow",
]
