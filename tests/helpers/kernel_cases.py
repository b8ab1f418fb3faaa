"""Inputs of kernel tests, and their exact results in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bark_fast import kernels
from helpers.kernels import DEVICE, assert_accurate, randn


def exact_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = x.double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return x * weight.double() + (0 if bias is None else bias.double())


def exact_linear(
    x: Tensor, weight: Tensor, bias=None, *, norm=None, gelu=False, residual=None
) -> Tensor:
    y = (x.double() if norm is None else exact_norm(x, *norm)) @ weight.double().T
    y = y if bias is None else y + bias.double()
    y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2))) if gelu else y
    return y if residual is None else y + residual.double()


EXTRAS = [
    {},
    {"bias": True},
    {"norm": "weight"},
    {"norm": "both", "bias": True, "gelu": True},
    {"residual": True},
    {"norm": "weight", "gelu": True},
    {"norm": "both", "residual": True, "bias": True},
]


def extras_of(spec: dict, n: int, m: int, k: int, dtype: torch.dtype) -> dict:
    made: dict = {"gelu": spec.get("gelu", False)}
    if "norm" in spec:
        bias = randn(k, seed=4, dtype=dtype) if spec["norm"] == "both" else None
        made["norm"] = (randn(k, seed=3, dtype=dtype), bias)
    if spec.get("residual"):
        made["residual"] = randn(n, m, seed=5, dtype=dtype)
    if spec.get("bias"):
        made["bias"] = randn(m, seed=6, dtype=dtype)
    return made


class Sequences:
    """Sequences on scattered pages of a cache that is NaN everywhere else.

    Args:
        shared: the number of first pages that all sequences have in common.
    """

    def __init__(
        self, lengths: list[int], page_size: int, *, heads: int = 2, size: int = 16,
        dtype: torch.dtype = torch.float32, shared: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        counts = [-(-n // page_size) for n in lengths]
        n_pages = sum(counts) + 3
        order = torch.randperm(n_pages, generator=torch.Generator().manual_seed(seed)).tolist()
        self.lengths = lengths
        self.k_pages = torch.full(
            (n_pages, heads, page_size, size), math.nan, dtype=dtype, device=DEVICE
        )
        self.v_pages = self.k_pages.clone()
        self.tables = torch.zeros(len(lengths), max(1, *counts), dtype=torch.int64, device=DEVICE)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        first_pages = order[:shared]
        order = order[shared:]
        for i, (n, count) in enumerate(zip(lengths, counts, strict=True)):
            pages = [*first_pages[:count], *order[: max(0, count - shared)]]
            order = order[max(0, count - shared) :]
            self.tables[i, :count] = torch.tensor(pages, dtype=torch.int64)
            for p, page in enumerate(pages):
                filled = min(page_size, n - p * page_size)
                if p >= shared or self.k_pages[page].isnan().all():
                    k = randn(heads, page_size, size, seed=seed + 1000 + page, dtype=dtype)
                    self.k_pages[page, :, :filled] = k[:, :filled]
                    self.v_pages[page, :, :filled] = (k * 0.5 + 1)[:, :filled]
            gathered = [self.k_pages[pages], self.v_pages[pages]]
            k, v = (g.transpose(1, 2).reshape(-1, heads, size)[:n] for g in gathered)
            self.keys.append(k)
            self.values.append(v)

    def exact(self, q: Tensor, i: int) -> Tensor:
        """Return causal attention of sequence i's last len(q) tokens, in float64."""
        n, length = len(q), self.lengths[i]
        k, v = self.keys[i].double().transpose(0, 1), self.values[i].double().transpose(0, 1)
        scores = q.double().transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)
        return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ v).transpose(0, 1)

    def run(self, q: Tensor, queries: list[int], impl: str, **options: object) -> Tensor:
        starts = torch.tensor([0, *queries], device=DEVICE).cumsum(0)
        return kernels.paged_attention(
            q, self.k_pages, self.v_pages, block_tables=self.tables, cu_seqlens_q=starts,
            seq_lens=torch.tensor(self.lengths, device=DEVICE), max_queries=max(queries),
            max_length=max(1, *self.lengths), impl=impl, **options,
        )  # fmt: skip

    def check(self, q: Tensor, queries: list[int], impl: str, **options: object) -> None:
        got = self.run(q, queries, impl, **options)
        plain = self.run(q, queries, "torch")
        start = 0
        for i, n in enumerate(queries):
            rows = slice(start, start + n)
            if self.lengths[i] == 0:
                assert (got[rows] == 0).all(), "no keys: zeros"
            elif n:
                assert_accurate(got[rows], plain[rows], self.exact(q[rows], i))
            start += n


def exact_bidirectional(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention of every frame to every frame, [B, T, H, D], in float64."""
    d = [t.double().transpose(1, 2) for t in (q, k, v)]
    exact = (d[0] @ d[1].transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1) @ d[2]
    return exact.transpose(1, 2)
