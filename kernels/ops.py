"""The operations that Bark's networks are made of; models call these and nothing else.

A name means a mathematical result; `impl` picks who computes it: "torch" (`reference.py`, plain
torch, any device: the oracle), "cpu" (the same, but for what `cpu.py` does faster), "native" (what
`native.c` has, the reference for the rest; CPUs with AVX-512 and a compiler), "int8" (the same with
the products' weights in 8 bits) or "triton" (the other files; CUDA devices, or any under triton's
interpreter). `choose_impl` says which serves a device; a
model asks once, when it is built.

Shapes use one vocabulary: B batch, T tokens, N packed tokens of several sequences, H heads, D head
size, C width, F frames, V vocabulary, K streams or codebooks, P pages.

`decode=True` says that the rows of a call are single steps of independent sequences. It picks the
schedule; the number of rows never does, so that in either mode a row's bits do not depend on what
else is in the batch ("triton"; for "torch", whose libraries choose by shape, up to rounding).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from bark_fast.kernels import reference
from bark_fast.kernels.cpu import native, onednn
from bark_fast.kernels.cpu.native import PackedWeight, release_threads
from bark_fast.kernels.reference import process_logits
from bark_fast.kernels.state import DecodeState

Impl = Literal["torch", "cpu", "native", "int8", "triton"]
Norm = tuple[Tensor, Tensor | None]
"""Weight and bias of a layer norm; the bias may be None."""

Weight = Tensor | PackedWeight
"""[O, K] of a product, as torch stores it or as `pack_weight` made it."""

LAYER_NORM_EPS = 1e-5

_NATIVE = ("native", "int8")

_PRODUCTS: dict[str, reference.Product] = {
    "torch": torch.nn.functional.linear,
    "cpu": onednn.product,
    "native": torch.nn.functional.linear,  # of a weight that was not packed
    "int8": torch.nn.functional.linear,
}

__all__ = [
    "DecodeState",
    "Impl",
    "Norm",
    "PackedWeight",
    "Weight",
    "bidirectional_attention",
    "can_run_triton",
    "choose_impl",
    "codebook_sum",
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
    "why_not_native",
]


def choose_impl(device: torch.device, dtype: torch.dtype) -> Impl:
    """The implementation that serves a model in `dtype` on `device`."""
    if device.type != "cuda":
        return "cpu" if why_not_native(device, dtype) else "native"
    return "triton" if can_run_triton(device) else "torch"


def why_not_native(device: torch.device, dtype: torch.dtype, *, int8: bool = False) -> str | None:
    """What keeps "native" (or "int8") from serving a model in `dtype` on `device`; None if nothing
    does."""
    if device.type != "cpu":
        return f"it serves CPUs, not {device.type}"
    return native.why_not(dtype, int8=int8)


def can_run_triton(device: torch.device) -> bool:
    """Whether triton's kernels run on `device`: on CUDA, or anywhere in triton's interpreter."""
    try:
        from triton.knobs import runtime
    except ImportError:
        return False
    return device.type == "cuda" or bool(runtime.interpret)


def record_native(step: Callable[[], None]) -> Callable[[], None]:
    """Run `step` once and return what repeats its operations, all of impl="native", on the same
    tensors in one call: what a CUDA graph is on a GPU."""
    return native.record(step)


def pack_weight(weight: Tensor, *, impl: Impl) -> Weight:
    """weight [O, K] of a product in the form that this `impl` multiplies fastest by; it has the
    same shape, and serves nothing but `fused_linear` and `qkv_to_pages`."""
    if impl in _NATIVE:
        return native.pack(weight, int8=impl == "int8")
    return onednn.pack(weight) if impl == "cpu" else weight


def kv_dtype(dtype: torch.dtype, *, impl: Impl) -> torch.dtype:
    """What the pages of keys and values of a model in `dtype` hold."""
    return torch.float32 if impl == "cpu" else dtype


def embedding_sum(
    ids: Tensor,
    tables: Tensor,
    *,
    positions: Tensor,
    position_table: Tensor,
    impl: Impl = "torch",
) -> Tensor:
    """Sum of K embeddings and a position embedding for each token.

    Args:
        ids: int64 [K, N]; -1 adds nothing (a stream that is silent at that token).
        tables: [K, V, C], one table a stream; `table.expand(K, -1, -1)` shares one.
        positions: int64 [N], rows of `position_table` [P, C].

    Returns:
        [N, C]
    """
    if impl in _NATIVE:
        return native.embedding_sum(ids, tables, positions=positions, position_table=position_table)
    if impl != "triton":
        return reference.embedding_sum(
            ids, tables, positions=positions, position_table=position_table
        )
    from bark_fast.kernels.triton import embedding

    return embedding.embedding_sum(ids, tables, positions=positions, position_table=position_table)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = LAYER_NORM_EPS,
    impl: Impl = "torch",
) -> Tensor:
    """Layer norm over the last dimension of x [N, C] (Ba et al. 2016); statistics in float32."""
    if impl != "triton":
        return reference.layer_norm(x, weight, bias, eps=eps)
    from bark_fast.kernels.triton import norm

    return norm.layer_norm(x, weight, bias, eps=eps)


def fused_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    eps: float = LAYER_NORM_EPS,
    decode: bool = False,
    pdl: bool = False,
    impl: Impl = "torch",
) -> Tensor:
    """x @ weight.T with what stands before and after it in a transformer block.

    Args:
        x: [N, K]; weight: [O, K] as torch stores it or `pack_weight` made it; bias: [O].
        norm: of a layer norm applied to x first, weight and bias [K].
        gelu: apply the exact GELU (erf) to the product.
        residual: [N, O], added last.
        decode: see the module's docstring.
        pdl: programmatic dependent launch of a decode kernel (sm_90 and newer).

    Returns:
        [N, O]
    """
    if isinstance(weight, PackedWeight):
        return native.fused_linear(
            x, weight, bias, norm=norm, gelu=gelu, residual=residual, eps=eps
        )
    if impl != "triton":
        return reference.fused_linear(
            x,
            weight,
            bias,
            norm=norm,
            gelu=gelu,
            residual=residual,
            eps=eps,
            product=_PRODUCTS[impl],
        )
    from bark_fast.kernels.triton import linear as kernel

    return kernel.fused_linear(
        x, weight, bias, norm=norm, gelu=gelu, residual=residual, eps=eps, decode=decode, pdl=pdl
    )


def qkv_to_pages(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    *,
    norm: Norm,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    eps: float = LAYER_NORM_EPS,
    decode: bool = False,
    pdl: bool = False,
    impl: Impl = "torch",
) -> Tensor:
    """Layer norm and the projection to queries, keys and values; the last two go to their pages.

    Args:
        x: [N, C]; weight: [3 C, C], queries, keys, values; bias: [3 C].
        k_pages, v_pages: [P, H, page_size, D] of `kv_dtype`, contiguous, H D = C; written in place.
        slots: int64 [N], page * page_size + offset of each token; -1 writes nothing.
        norm, decode, pdl: as in `fused_linear`.

    Returns:
        The queries, [N, H, D].
    """
    if isinstance(weight, PackedWeight):
        return native.qkv_to_pages(
            x, weight, bias, norm=norm, k_pages=k_pages, v_pages=v_pages, slots=slots, eps=eps
        )
    if impl != "triton":
        return reference.qkv_to_pages(
            x,
            weight,
            bias,
            norm=norm,
            k_pages=k_pages,
            v_pages=v_pages,
            slots=slots,
            eps=eps,
            product=_PRODUCTS[impl],
        )
    from bark_fast.kernels.triton import linear as kernel

    q = kernel.fused_linear(
        x,
        weight,
        bias,
        norm=norm,
        gelu=False,
        residual=None,
        eps=eps,
        decode=decode,
        pdl=pdl,
        paged=kernel.PagedKV(k_pages, v_pages, slots),
    )
    return q.view(len(x), k_pages.shape[1], k_pages.shape[3])


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    block_tables: Tensor,
    kv_lengths: Tensor,
    max_queries: int,
    max_length: int,
    query_starts: Tensor | None = None,
    decode: bool = False,
    workspace: Tensor | None = None,
    pdl: bool = False,
    impl: Impl = "torch",
) -> Tensor:
    """Causal attention of packed queries to the pages of their own sequences.

    The queries of sequence b are its last ones: query i of n sees the first
    `kv_lengths[b] - n + 1 + i` keys. Scores are scaled by 1/sqrt(D) (Vaswani et al. 2017, eq. 1);
    paging after Kwon et al. 2023. A sequence without keys gives zeros.

    Args:
        q: [N, H, D], the queries of B sequences one after another.
        k_pages, v_pages: [P, H, page_size, D].
        block_tables: int64 [B, max_pages], the pages of each sequence in order.
        query_starts: int64 [B + 1], offsets into q; None where every sequence has one query.
        kv_lengths: int64 [B], the queries' own tokens included.
        max_queries, max_length: at least the most queries and keys of any sequence. Where lengths
            grow on the device, max_pages * page_size is a safe max_length.
        decode: every sequence has one query, and `query_starts` is not read.
        workspace: `attention.decode_workspace`, to spare its allocation at every step.
        pdl: as in `fused_linear`, with `decode`.

    Returns:
        [N, H, D]
    """
    if impl in _NATIVE:
        return native.paged_attention(
            q,
            k_pages,
            v_pages,
            block_tables=block_tables,
            query_starts=None if decode else query_starts,
            kv_lengths=kv_lengths,
        )
    if impl != "triton":
        return reference.paged_attention(
            q,
            k_pages,
            v_pages,
            block_tables=block_tables,
            query_starts=None if decode else query_starts,
            kv_lengths=kv_lengths,
        )
    from bark_fast.kernels.triton import attention as kernel

    return kernel.paged_attention(
        q,
        k_pages,
        v_pages,
        block_tables=block_tables,
        query_starts=query_starts,
        kv_lengths=kv_lengths,
        max_queries=max_queries,
        max_length=max_length,
        decode=decode,
        workspace=workspace,
        pdl=pdl,
    )


def bidirectional_attention(q: Tensor, k: Tensor, v: Tensor, *, impl: Impl = "torch") -> Tensor:
    """Attention of every frame to every frame; q, k, v and the result are [B, T, H, D].

    q, k and v may be slices of one projection: the last two dimensions contiguous.
    """
    if impl in _NATIVE:
        return native.bidirectional_attention(q, k, v)
    if impl != "triton":
        return reference.bidirectional_attention(q, k, v)
    from bark_fast.kernels.triton import attention as kernel

    return kernel.bidirectional_attention(q, k, v)


def codebook_sum(codes: Tensor, tables: Tensor, *, impl: Impl = "torch") -> Tensor:
    """What residual vector quantisation stands for: the sum of a frame's codebook vectors.

    Args:
        codes: int64 [B, K, F]; tables: [K, V, C] (EnCodec, Défossez et al. 2022, section 3.2).

    Returns:
        [B, C, F], contiguous: the layout that the decoder's first convolution reads.
    """
    if impl != "triton":
        return reference.codebook_sum(codes, tables)
    from bark_fast.kernels.triton import codebook

    return codebook.codebook_sum(codes, tables)


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    stage: int,
    positions: Tensor | None = None,
    min_eos_p: Tensor | None = None,
    min_draws: Tensor | None = None,
    n_ranges: int = 1,
    range_size: int = 0,
    first_id: int = 0,
    state: DecodeState | None = None,
    impl: Impl = "torch",
) -> Tensor:
    """Draw one column a row: argmax of the processed logits plus Gumbel noise (Gumbel 1954).

    The noise is a function of (seed, stage, position, column) alone, so a row draws the same in any
    batch, in any place, on any device up to rounding. `process_logits` says what temperature, top-k
    and top-p do.

    Args:
        logits: [B, V] of the ids that can be sampled; where the stage has an end token, it is the
            last column.
        temperature: float32 [B]; 0 takes the first largest logit and draws nothing.
        top_k: int64 [B], 0 keeps all. top_p: float32 [B], 1 keeps all.
        seeds: int64 [B], the 64 bits of each row's seed.
        stage: a number that keeps the stages' draws apart.
        positions: int64 [B], 0 .. 2**32 - 1, the row's place in its own sequence of draws; left out
            with `state`, which counts them.
        min_eos_p: float32 [B], or None where there is no end token. The end token is taken at once
            if its probability, before temperature, exceeds this (transformers'
            BarkEosPrioritizerLogitsProcessor); 0 never.
        min_draws: int64 [B], or None; at positions before it the last column, the end token, is
            impossible.
        n_ranges, range_size: alternating codebooks: at position p only the columns from
            (p % n_ranges) * range_size on are possible, range_size of them, but for the last range,
            which goes to the end of the row.
        first_id: the id of column 0, for `state`.
        state: read and written for the next step; rows that are finished draw nothing meaningful.

    Returns:
        int64 [B], columns.
    """
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seeds": seeds,
        "positions": positions if state is None else state.draws,
        "stage": stage,
        "min_eos_p": min_eos_p,
        "min_draws": min_draws,
        "n_ranges": n_ranges,
        "range_size": range_size,
        "first_id": first_id,
        "state": state,
    }
    if impl in _NATIVE:
        return native.sample(logits, **options)
    if impl != "triton":
        return reference.sample(logits, **options)
    from bark_fast.kernels.triton import sampling

    return sampling.sample(logits, **options)


def random_words(
    seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int, impl: Impl = "torch"
) -> Tensor:
    """The 32-bit integers behind the noise of `sample`, int64 [B, n_ids].

    Column i has word i % 4 of the Philox-4x32-10 block (Salmon et al. 2011) with counter
    (i // 4, position, stage, 0) and the seed as its key. The noise is -log(-log(u)), where u in
    (0, 1) is the word's upper 23 bits, centred, and so exact in float32.
    """
    if impl in _NATIVE:
        return native.random_words(seeds, positions, stage=stage, n_ids=n_ids)
    if impl != "triton":
        return reference.random_words(seeds, positions, stage=stage, n_ids=n_ids)
    from bark_fast.kernels.triton import sampling

    return sampling.random_words_of(seeds, positions, stage=stage, n_ids=n_ids)
