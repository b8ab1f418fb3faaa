"""The operations that `aot` compiles: those of Bark's two sizes, on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bark_fast import kernels


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that the kernels depend on."""

    width: int
    heads: int
    text_ids: int = 129_600
    semantic_ids: int = 10_001  # columns of the semantic head
    coarse_ids: int = 2_096
    codebook_size: int = 1_024
    codebooks: int = 8
    codec_channels: int = 128


SHAPES = {"small": ModelShape(768, 12), "large": ModelShape(1024, 16)}


def cases(shape: ModelShape, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield every operation as the models call it, decode at 1, 16 and 17 rows, with its name."""

    def new(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    c, h = shape.width, shape.heads
    d = c // h
    i64 = torch.int64
    # Small pages for many sequences, and one page a sequence.
    page_sizes = (16, 1024)
    norm, norm_bias = (new(c), None), (new(c), new(c))
    backend, dependent = kernels.backend("triton"), kernels.backend("triton", pdl=True)

    def attend(
        rows: int, page_size: int, *, decode: bool, by: kernels.Backend = backend
    ) -> Callable[[], object]:
        pages, table = new(64, h, page_size, d), new(4, 1024 // page_size, of=i64)
        return partial(
            by.paged_attention, new(rows, h, d), pages, pages,
            block_tables=table, cu_seqlens_q=new(5, of=i64),
            seq_lens=new(4, of=i64), max_queries=1 if decode else 300, max_length=1024,
            decode=decode,
        )  # fmt: skip

    def embed(
        streams: int, table: Tensor, tokens: int = 300, *, by: kernels.Backend = backend
    ) -> Callable[[], object]:
        return partial(
            by.embedding_sum, new(streams, tokens, of=i64), table,
            positions=new(tokens, of=i64), position_table=new(1024, c),
        )  # fmt: skip

    yield "embedding (prompt)", embed(2, new(1, shape.text_ids, c).expand(2, -1, -1))
    yield "embedding (decode)", embed(1, new(1, shape.text_ids, c), tokens=4)
    yield "embedding (one token)", embed(1, new(1, shape.text_ids, c), tokens=1)
    yield "embedding (fine)", embed(7, new(shape.codebooks, 1056, c))
    yield "layer norm", partial(backend.layer_norm, new(300, c), new(c), None)
    for rows in (1, 16, 17, 300):
        decode = rows < 300
        tail = f" M={rows}" if decode else " prefill"
        x, wide = new(rows, c), new(rows, 4 * c)
        product = partial(backend.fused_linear, decode=decode)
        for page_size in page_sizes:
            pages = new(64, h, page_size, d)
            yield (
                f"qkv to pages of {page_size}{tail}",
                partial(
                    backend.qkv_to_pages, x, new(3 * c, c), None, norm=norm, k_pages=pages,
                    v_pages=pages, slot_mapping=new(rows, of=i64), decode=decode,
                ),
            )  # fmt: skip
        yield "out + residual" + tail, partial(product, x, new(c, c), residual=x)
        yield "fc1 + gelu" + tail, partial(product, x, new(4 * c, c), norm=norm, gelu=True)
        yield "fc2 + residual" + tail, partial(product, wide, new(c, 4 * c), residual=x)
        if decode:
            for head, ids in (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids)):
                yield f"{head} head{tail}", partial(product, x, new(ids, c), norm=norm)
    # With programmatic dependent launch, which only the kernels of a decode step have.
    pages = new(64, h, 64, d)
    for rows in (1, 17):
        product = partial(dependent.fused_linear, decode=True)
        tail, x, wide = f" M={rows} pdl", new(rows, c), new(rows, 4 * c)
        yield (
            f"qkv to pages of 64{tail}",
            partial(
                dependent.qkv_to_pages, x, new(3 * c, c), None, norm=norm, k_pages=pages,
                v_pages=pages, slot_mapping=new(rows, of=i64), decode=True,
            ),
        )  # fmt: skip
        yield "out + residual" + tail, partial(product, x, new(c, c), residual=x)
        yield "fc1 + gelu" + tail, partial(product, x, new(4 * c, c), norm=norm, gelu=True)
        yield "fc2 + residual" + tail, partial(product, wide, new(c, 4 * c), residual=x)
        for head, ids in (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids)):
            yield f"{head} head{tail}", partial(product, x, new(ids, c), norm=norm)
    yield "embedding (decode) pdl", embed(1, new(1, shape.text_ids, c), tokens=4, by=dependent)
    yield "attention (decode) pdl", attend(4, 64, decode=True, by=dependent)
    for stage, ids in (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids)):
        yield f"sample ({stage}) pdl", _sample(new, ids, dtype, eos=stage == "semantic", pdl=True)
    product = partial(backend.fused_linear, new(2 * 1024, c), norm=norm_bias)
    yield "fine qkv", partial(product, new(3 * c, c))
    yield "fine fc1 + gelu", partial(product, new(4 * c, c), gelu=True)
    yield "fine head", partial(product, new(shape.codebook_size, c))
    for page_size in page_sizes:
        tail = f", pages of {page_size}"
        yield f"attention (decode{tail})", attend(4, page_size, decode=True)
        yield f"attention (prefill{tail})", attend(1200, page_size, decode=False)
    window = new(2, 1024, 3, h, d)
    yield "attention (fine)", partial(backend.bidirectional_attention, *window.unbind(2))
    for stage, ids in (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids)):
        yield f"sample ({stage})", _sample(new, ids, dtype, eos=stage == "semantic")
    yield "sample (fine)", _sample(new, shape.codebook_size, dtype, eos=False, state=False)
    codes = new(1, shape.codebooks, 700, of=i64)
    books = new(shape.codebooks, shape.codebook_size, shape.codec_channels, of=torch.float32)
    yield "codebook sum", partial(backend.codebook_sum, codes, books)


def _sample(
    new: Callable[..., Tensor],
    ids: int,
    dtype: torch.dtype,
    *,
    eos: bool,
    state: bool = True,
    pdl: bool = False,
) -> Callable[[], object]:
    """Return a draw for 4 rows as a stage makes it, with the decode loop's state if `state`."""
    rows, i64, f32 = 4, torch.int64, torch.float32

    def vector(of: torch.dtype = i64) -> Tensor:
        return new(rows, of=of)

    loop = kernels.DecodeState(
        token_ids=vector(), positions=vector(), seq_lens=vector(), slot_mapping=vector(),
        block_tables=new(rows, 64, of=i64), num_generated=vector(), limits=vector(),
        finished=vector(torch.int32), history=new(rows, 768, of=i64), page_size=16,
    )  # fmt: skip
    metadata = kernels.SamplingMetadata(
        temperature=vector(f32), top_k=vector(), top_p=vector(f32), seeds=vector(),
        min_eos_p=vector(f32), min_new_tokens=vector(), suno_rules=vector(),
    )  # fmt: skip
    space = kernels.TokenSpace(
        stage=0 if eos else 1, first_id=10_000, has_end=eos, n_ranges=1 if eos else 2,
        range_size=1024,
    )  # fmt: skip
    return partial(
        kernels.backend("triton", pdl=pdl).sample, new(rows, ids, of=dtype), metadata, space,
        positions=vector(), state=loop if state else None,
    )  # fmt: skip
