"""The operations that `aot` compiles: those that an engine launches for Bark's two sizes.

They run on tensors without memory. `tests/kernels/test_aot.py` holds the launches equal to those
that an engine makes, so this is the list of all.
"""

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


PAGE_SIZE = 64  # the engine's on CUDA
MOST_POSITIONS = 1024
_PROMPTS = (257, 514, 4112, 20)  # tokens; the last are the end of a prompt that is known
_WINDOW, _WINDOWS = 1024, (1, 2, 8)  # frames, and how many windows run together
SHAPES = {"small": ModelShape(768, 12), "large": ModelShape(1024, 16)}


New = Callable[..., Tensor]
"""Makes a tensor without memory of that size; `of` is its dtype."""


def cases(
    shape: ModelShape, dtype: torch.dtype, *, pdl: bool = False
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield every operation as the engine calls it, with its name; decode at 1 and at 16 rows.

    Args:
        pdl: launch those of decode steps as programmatic dependents.
    """
    new = partial(_new, dtype)
    backend = kernels.backend("triton", pdl=pdl)
    tail = " pdl" if pdl else ""
    for rows in (1, 16):
        for name, run in _products(backend, shape, new, rows, decode=True):
            yield f"{name} M={rows}{tail}", run
        for head, ids in (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids)):
            x, norm = new(rows, shape.width), (new(shape.width), None)
            run = partial(backend.fused_linear, x, new(ids, shape.width), norm=norm, decode=True)
            yield f"{head} head M={rows}{tail}", run
    yield f"attention (decode){tail}", _attention(backend, shape, new, 4, decode=True)
    yield from _others(backend, shape, new, tail)


def _others(
    backend: kernels.Backend, shape: ModelShape, new: New, tail: str
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is not part of every layer of a decode step; `tail` ends the names of its own."""
    c, h, i64 = shape.width, shape.heads, torch.int64

    def embed(streams: int, table: Tensor) -> Callable[[], object]:
        return partial(
            backend.embedding_sum, new(streams, 300, of=i64), table,
            positions=new(300, of=i64), position_table=new(MOST_POSITIONS, c),
        )  # fmt: skip

    yield f"embedding (prompt){tail}", embed(2, new(1, shape.text_ids, c).expand(2, -1, -1))
    yield f"embedding (fine){tail}", embed(7, new(shape.codebooks, 1056, c))
    yield "layer norm", partial(backend.layer_norm, new(300, c), new(c), None)
    # How many rows there are may choose the tiles; what is chosen twice is compiled once.
    for tokens in _PROMPTS:
        prompt = "prefill" if tokens == _PROMPTS[0] else f"prefill of {tokens}"
        for name, run in _products(backend, shape, new, tokens, decode=False):
            yield f"{name} {prompt}", run
    for windows in _WINDOWS:
        times = "" if windows == 1 else f" x {windows}"
        x, wide = new(windows * _WINDOW, c), new(windows * _WINDOW, 4 * c)
        product = partial(backend.fused_linear, x, norm=(new(c), new(c)))
        yield f"fine qkv{times}", partial(product, new(3 * c, c))
        yield f"fine out + residual{times}", partial(backend.fused_linear, x, new(c, c), residual=x)
        yield f"fine fc1 + gelu{times}", partial(product, new(4 * c, c), gelu=True)
        yield (
            f"fine fc2 + residual{times}",
            partial(backend.fused_linear, wide, new(c, 4 * c), residual=x),
        )
        yield f"fine head{times}", partial(product, new(shape.codebook_size, c))
    yield "attention (prefill)", _attention(backend, shape, new, 1200, decode=False)
    window = new(2, 1024, 3, h, c // h)
    yield "attention (fine)", partial(backend.bidirectional_attention, *window.unbind(2))
    semantic = kernels.TokenSpace(stage=0, has_end=True)
    coarse = kernels.TokenSpace(stage=1, first_id=10_000, n_ranges=2, range_size=1024)
    for name, space, ids, steps in (
        ("semantic", semantic, shape.semantic_ids, 8),
        ("coarse", coarse, shape.coarse_ids, 60),
    ):
        yield f"sample ({name}){tail}", _sample(backend, new, ids, space, steps=steps)
        yield f"sample (after a {name} prompt){tail}", _sample(backend, new, ids, space)
    fine = kernels.TokenSpace(stage=2)
    yield f"sample (fine){tail}", _sample(backend, new, shape.codebook_size, fine)
    codes = new(1, shape.codebooks, 700, of=i64)
    books = new(shape.codebooks, shape.codebook_size, shape.codec_channels, of=torch.float32)
    yield "codebook sum", partial(backend.codebook_sum, codes, books)


def _new(dtype: torch.dtype, *size: int, of: torch.dtype | None = None) -> Tensor:
    return torch.empty(size, dtype=of or dtype, device="meta")


def _products(
    backend: kernels.Backend, shape: ModelShape, new: New, rows: int, *, decode: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the four products of a block of a causal model."""
    c, h = shape.width, shape.heads
    x, wide, norm = new(rows, c), new(rows, 4 * c), (new(c), None)
    pages = new(64, h, PAGE_SIZE, c // h)
    product = partial(backend.fused_linear, decode=decode)
    yield (
        "qkv to pages",
        partial(
            backend.qkv_to_pages, x, new(3 * c, c), None, norm=norm, k_pages=pages,
            v_pages=pages, slot_mapping=new(rows, of=torch.int64), decode=decode,
        ),
    )  # fmt: skip
    yield "out + residual", partial(product, x, new(c, c), residual=x)
    yield "fc1 + gelu", partial(product, x, new(4 * c, c), norm=norm, gelu=True)
    yield "fc2 + residual", partial(product, wide, new(c, 4 * c), residual=x)


def _attention(
    backend: kernels.Backend, shape: ModelShape, new: New, rows: int, *, decode: bool
) -> Callable[[], object]:
    """Return the attention of `rows` tokens of four sequences to their pages."""
    h, d, i64 = shape.heads, shape.width // shape.heads, torch.int64
    pages, table = new(64, h, PAGE_SIZE, d), new(4, MOST_POSITIONS // PAGE_SIZE, of=i64)
    return partial(
        backend.paged_attention, new(rows, h, d), pages, pages, block_tables=table,
        cu_seqlens_q=new(5, of=i64), seq_lens=new(4, of=i64), max_queries=1 if decode else 300,
        max_length=MOST_POSITIONS, decode=decode,
    )  # fmt: skip


def _sample(
    backend: kernels.Backend, new: New, ids: int, space: kernels.TokenSpace, *, steps: int = 0
) -> Callable[[], object]:
    """Return a draw for 4 rows as a stage makes it.

    Args:
        steps: between two looks, of a decode loop whose state the draw advances; 0 for a draw
            without one.
    """
    rows, i64, f32 = 4, torch.int64, torch.float32

    def vector(of: torch.dtype = i64) -> Tensor:
        return new(rows, of=of)

    loop = kernels.DecodeState(
        token_ids=vector(), positions=vector(), seq_lens=vector(), slot_mapping=vector(),
        block_tables=new(rows, MOST_POSITIONS // PAGE_SIZE, of=i64), num_generated=vector(),
        limits=vector(), finished=vector(torch.int32), history=new(rows, steps, of=i64),
        page_size=PAGE_SIZE,
    )  # fmt: skip
    metadata = kernels.SamplingMetadata(
        temperature=vector(f32), top_k=vector(), top_p=vector(f32), seeds=vector(),
        min_eos_p=vector(f32), min_new_tokens=vector(), suno_rules=vector(),
    )  # fmt: skip
    where = {"state": loop} if steps else {"positions": vector()}
    return partial(backend.sample, new(rows, ids), metadata, space, **where)
