"""Make a case of each operation: as the models call it, the same in torch, and its least cost.

Weights, keys and values take turns among as many copies as overflow the cache: a model's next
layer never finds its weights there either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_fast import kernels
from bark_fast.kernels import Backend, Impl, TokenSpace
from bark_fast.kernels.aot import SHAPES as BARK
from bark_fast.kernels.aot import ModelShape
from bark_fast.stages.sampling import SamplingParams, batch_sampling

MOST_COPIES = 64
SHAPES = {**BARK, "tiny": ModelShape(64, 2, 600, 501, 1_072, 64, 2, 16)}  # to rehearse with
DECODE_CONTEXT = 700


Cast = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KernelCase:
    """One operation at one size.

    Attributes:
        run: runs it with the implementation that the case was made for.
        run_torch: runs it as a torch user would, or the plain reference where torch has no call.
        n_bytes: bytes that must be read or written, each once.
        flops: multiplications and additions.
        plain: computes the same as `run` in plain torch, with every input cast; None if `run` is
            not to be tuned.
    """

    name: str
    run: Callable[[], object]
    run_torch: Callable[[], object]
    n_bytes: int
    flops: int = 0
    plain: Callable[[Cast], Tensor] | None = None


@dataclass(frozen=True)
class Sizes:
    """Sizes of the cases by device: enough to fill it, not so much that a CPU takes minutes.

    Attributes:
        rows: batch sizes of decode steps.
        prompts: number of prompts of 257 tokens that run together.
        windows: number of the fine model's windows that run together.
        page_size: positions in a page of keys and values, as in the engine.
    """

    rows: tuple[int, ...]
    prompts: int
    windows: int
    page_size: int

    @classmethod
    def of(cls, device: torch.device) -> Sizes:
        """Return the sizes for `device`."""
        if device.type == "cuda":
            return cls((1, 16, 64, 256), 8, 8, 64)
        return cls((1, 4, 16), 1, 1, 1024)


def linear_cost(m: int, n: int, k: int, size: int, *, residual: bool = False) -> tuple[int, int]:
    """Return (bytes, FLOPs) of an [m, k] x [k, n] product, which may also read a residual."""
    return (n * k + m * k + m * n * (1 + residual)) * size, 2 * m * n * k


def attention_cost(
    queries: int, keys: int, width: int, size: int, *, seen: float | None = None
) -> tuple[int, int]:
    """Return (bytes, FLOPs) of the attention of `queries` queries to `keys` keys.

    Each query sees `seen` keys on average, None for all; every key and value is read once.
    """
    seen = keys if seen is None else seen
    return (2 * queries + 2 * keys) * width * size, int(4 * queries * seen * width)


class CaseMaker:
    """Makes the cases of one model size, dtype, device and implementation.

    Args:
        cache_bytes: size of the cache that the copies of an operand have to overflow.
    """

    def __init__(
        self,
        shape: ModelShape,
        dtype: torch.dtype,
        device: torch.device,
        impl: Impl,
        *,
        cache_bytes: int,
    ) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        # As an engine launches them.
        self._ops = kernels.backend(impl, pdl=kernels.can_launch_dependents(device))
        self._cache_bytes = cache_bytes
        self._generator = torch.Generator().manual_seed(0)
        self._bytes = dtype.itemsize
        self._norm = (self._randn(shape.width), None)
        self._sizes = Sizes.of(device)

    def all(self) -> Iterator[KernelCase]:
        """Yield decode at several batch sizes, prompts, the fine model's windows, and the rest."""
        sizes = self._sizes
        for rows in sizes.rows:
            yield from self._products(rows, decode=True, tail=f"M={rows}")
            yield from self._heads(rows)
            yield self._paged(rows, 1, DECODE_CONTEXT, tail=f"decode B={rows} T={DECODE_CONTEXT}")
        prompt = 257
        rows = sizes.prompts * prompt
        yield from self._products(rows, decode=False, tail=f"M={rows}")
        yield self._paged(
            sizes.prompts, prompt, prompt, tail=f"prefill B={sizes.prompts} T={prompt}"
        )
        yield from self._products(sizes.windows * 1024, decode=False, tail="fine window")
        yield self._bidirectional(sizes.windows)
        yield from self._small(sizes.windows * 1024)
        for what, columns in (
            ("semantic", self._shape.semantic_ids),
            ("coarse", self._shape.coarse_ids),
        ):
            yield self._sample(what, max(sizes.rows), columns)

    def _randn(self, *of: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(of, generator=self._generator) * scale
        return drawn.to(self._device, self._dtype if dtype is None else dtype)

    def _integers(self, high: int, *of: int) -> Tensor:
        return torch.randint(high, of, generator=self._generator).to(self._device)

    def _copies(self, n_bytes: int) -> int:
        return min(MOST_COPIES, 2 * self._cache_bytes // n_bytes + 1)

    def _weights(self, outputs: int, inputs: int) -> tuple[_Turns, _Turns]:
        """Return a weight as bark-fast's kernels take it, and as torch does."""
        plain = [self._randn(outputs, inputs, scale=inputs**-0.5)]
        n_bytes = outputs * inputs * self._bytes
        plain += [plain[0].clone() for _ in range(self._copies(n_bytes) - 1)]
        packed = [self._ops.pack_weight(weight.clone()) for weight in plain]
        return _Turns(packed), _Turns(plain)

    def _products(self, rows: int, *, decode: bool, tail: str) -> Iterator[KernelCase]:
        c, h, norm = self._shape.width, self._shape.heads, self._norm
        size = self._bytes
        how: Any = {"decode": decode}
        x, wide = self._randn(rows, c), self._randn(rows, 4 * c)
        slot_mapping = torch.arange(rows, device=self._device)
        page_size = self._sizes.page_size
        n_pages = -(-rows // page_size)
        kv_dtype = self._ops.kv_dtype(self._dtype)
        paged_kv = self._randn(2, n_pages, h, page_size, c // h, dtype=kv_dtype)
        torch_kv = self._randn(2, rows, h, c // h)

        qkv, qkv_plain = self._weights(3 * c, c)

        def qkv_torch() -> object:
            out = F.linear(F.layer_norm(x, (c,), norm[0]), qkv_plain())
            q, k, v = out.view(rows, 3, h, c // h).unbind(1)
            torch_kv[0] = k
            torch_kv[1] = v
            return q

        yield KernelCase(
            f"qkv to pages {tail}",
            lambda: self._ops.qkv_to_pages(
                x, qkv(), None, norm=norm, k_pages=paged_kv[0], v_pages=paged_kv[1],
                slot_mapping=slot_mapping, **how,
            ),
            qkv_torch,
            *linear_cost(rows, 3 * c, c, size),
            plain=lambda cast: kernels.qkv_to_pages(
                cast(x), cast(qkv_plain()), None, norm=(cast(norm[0]), None),
                k_pages=cast(paged_kv[0]), v_pages=cast(paged_kv[1]), slot_mapping=slot_mapping,
            ),
        )  # fmt: skip
        out, out_plain = self._weights(c, c)
        yield KernelCase(
            f"out + residual {tail}",
            lambda: self._ops.fused_linear(x, out(), residual=x, **how),
            lambda: F.linear(x, out_plain()) + x,
            *linear_cost(rows, c, c, size, residual=True),
            plain=lambda cast: kernels.fused_linear(cast(x), cast(out_plain()), residual=cast(x)),
        )
        fc1, fc1_plain = self._weights(4 * c, c)
        yield KernelCase(
            f"norm + fc1 + gelu {tail}",
            lambda: self._ops.fused_linear(x, fc1(), norm=norm, gelu=True, **how),
            lambda: F.gelu(F.linear(F.layer_norm(x, (c,), norm[0]), fc1_plain())),
            *linear_cost(rows, 4 * c, c, size),
            plain=lambda cast: kernels.fused_linear(
                cast(x), cast(fc1_plain()), norm=(cast(norm[0]), None), gelu=True
            ),
        )
        fc2, fc2_plain = self._weights(c, 4 * c)
        workspace = self._ops.decode_workspace(rows, h, device=self._device)
        yield KernelCase(
            f"fc2 + residual {tail}",
            lambda: self._ops.fused_linear(wide, fc2(), residual=x, workspace=workspace, **how),
            lambda: F.linear(wide, fc2_plain()) + x,
            *linear_cost(rows, c, 4 * c, size, residual=True),
            plain=lambda cast: kernels.fused_linear(
                cast(wide), cast(fc2_plain()), residual=cast(x)
            ),
        )

    def _heads(self, rows: int) -> Iterator[KernelCase]:
        """Yield the products with the ids that can be sampled."""
        shape, norm = self._shape, self._norm
        x = self._randn(rows, shape.width)
        heads = (("semantic", shape.semantic_ids), ("coarse", shape.coarse_ids))
        for name, ids in heads:
            head, head_plain = self._weights(ids, shape.width)
            yield KernelCase(
                f"norm + {name} head M={rows}",
                partial(self._head, x, head),
                partial(_head_torch, x, head_plain, norm[0]),
                *linear_cost(rows, ids, shape.width, self._bytes),
                plain=partial(_head_plain, x, head_plain, norm[0]),
            )

    def _head(self, x: Tensor, head: _Turns) -> Tensor:
        return self._ops.fused_linear(x, head(), norm=self._norm, decode=True)

    def _paged(self, batch: int, queries: int, length: int, *, tail: str) -> KernelCase:
        """Return the case of causal attention to pages.

        torch has no such call, and gets the keys and values side by side.
        """
        c, h, decode = self._shape.width, self._shape.heads, queries == 1
        page_size = self._sizes.page_size
        per_sequence = -(-length // page_size)
        kv_dtype = self._ops.kv_dtype(self._dtype)
        tables = torch.randperm(batch * per_sequence, generator=self._generator)
        tables = tables.view(batch, per_sequence).to(self._device)
        q = self._randn(batch * queries, h, c // h)
        copies = self._copies(2 * batch * length * c * self._bytes)
        paged = self._randn(2, batch * per_sequence, h, page_size, c // h, dtype=kv_dtype)
        pages = _Turns([paged, *(paged.clone() for _ in range(copies - 1))])
        side_by_side = self._randn(2, batch, h, length, c // h)
        dense = _Turns([side_by_side, *(side_by_side.clone() for _ in range(copies - 1))])
        q_torch = q.view(batch, queries, h, c // h).transpose(1, 2)
        starts = torch.arange(batch + 1, device=self._device) * queries
        lengths = torch.full((batch,), length, device=self._device)
        workspace = self._ops.decode_workspace(batch, h, device=self._device)

        def run() -> object:
            k, v = pages()
            return self._ops.paged_attention(
                q, k, v, block_tables=tables, cu_seqlens_q=starts, seq_lens=lengths,
                max_queries=queries, max_length=length, decode=decode, workspace=workspace
            )  # fmt: skip

        def run_torch() -> object:
            k, v = dense()
            return F.scaled_dot_product_attention(q_torch, k, v, is_causal=not decode)

        seen = length if decode else (length + 1) / 2
        n_bytes, flops = attention_cost(queries, length, c, self._bytes, seen=seen)
        return KernelCase(
            f"attention {tail}", run, run_torch, batch * n_bytes, batch * flops,
            plain=lambda cast: kernels.paged_attention(
                cast(q), cast(paged[0]), cast(paged[1]), block_tables=tables, cu_seqlens_q=starts,
                seq_lens=lengths, max_queries=queries, max_length=length, decode=decode,
            ),
        )  # fmt: skip

    def _bidirectional(self, windows: int) -> KernelCase:
        c, h = self._shape.width, self._shape.heads
        q, k, v = self._randn(windows, 1024, 3, h, c // h).unbind(2)
        n_bytes, flops = attention_cost(1024, 1024, c, self._bytes)
        return KernelCase(
            f"attention fine B={windows} T=1024",
            lambda: self._ops.bidirectional_attention(q, k, v),
            lambda: F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))),
            windows * n_bytes,
            windows * flops,
            plain=lambda cast: kernels.bidirectional_attention(cast(q), cast(k), cast(v)),
        )

    def _small(self, rows: int) -> Iterator[KernelCase]:
        """Yield the cases that are bound by reading and writing their rows."""
        c, norm = self._shape.width, self._norm
        x = self._randn(rows, c)
        yield KernelCase(
            f"layer norm M={rows}",
            lambda: self._ops.layer_norm(x, norm[0], None),
            lambda: F.layer_norm(x, (c,), norm[0]),
            2 * rows * c * self._bytes,
        )
        tables, positions = self._randn(8, 1056, c), torch.arange(1024).repeat(rows // 1024)
        ids, position_table = self._integers(1056, 8, rows), self._randn(1024, c)
        positions = positions.to(self._device)

        def embed(ops: Backend) -> object:
            return ops.embedding_sum(
                ids, tables, positions=positions, position_table=position_table
            )

        yield KernelCase(
            f"embedding sum K=8 M={rows}",
            lambda: embed(self._ops),
            lambda: embed(kernels.backend("torch")),
            # Tables stay in cache: their rows are read once, the ids and the sum pass through.
            (tables.numel() + position_table.numel() + rows * c) * self._bytes + ids.numel() * 8,
        )
        n = self._shape.codebooks
        codes = self._integers(1024, rows // 1024, n, 1024)
        books = self._randn(n, 1024, self._shape.codec_channels, dtype=torch.float32)
        yield KernelCase(
            f"codebook sum F={rows}",
            lambda: self._ops.codebook_sum(codes, books),
            lambda: kernels.codebook_sum(codes, books, impl="torch"),
            (books.numel() + rows * self._shape.codec_channels) * 4 + codes.numel() * 8,
        )

    def _sample(self, what: str, batch: int, columns: int) -> KernelCase:
        logits = self._randn(batch, columns)
        params = [SamplingParams(0.7, seed) for seed in range(batch)]
        sampling, space = batch_sampling(params, self._device), TokenSpace(stage=0)
        positions = torch.arange(batch, device=self._device)
        return KernelCase(
            f"sample {what} B={batch}",
            lambda: self._ops.sample(logits, sampling, space, positions=positions),
            lambda: torch.multinomial((logits.float() / 0.7).softmax(-1), 1),
            logits.numel() * self._bytes,
        )


def _head_torch(x: Tensor, head: _Turns, gamma: Tensor) -> Tensor:
    return F.linear(F.layer_norm(x, x.shape[-1:], gamma), head())


def _head_plain(x: Tensor, head: _Turns, gamma: Tensor, cast: Cast) -> Tensor:
    return kernels.fused_linear(cast(x), cast(head()), norm=(cast(gamma), None))


class _Turns:
    """Returns its items in turn, one a call, and begins again after the last."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = cycle(items)

    def __call__(self) -> Any:
        return next(self._items)
