"""Vectors to tokens: k-means, and k-means of what is left over."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """For each of float32 [N, D] the index, int64 [N], of the nearest of [K, D]."""
    half = (centres**2).sum(1) / 2
    return torch.cat([(part @ centres.T - half).argmax(1) for part in points.split(16_384)])


def k_means(points: Tensor, k: int, *, seed: int, rounds: int = 25) -> Tensor:
    """Centres [k, D] (Lloyd's algorithm); a centre that nobody is nearest to starts anew at a
    random point."""
    generator = torch.Generator().manual_seed(seed)

    def some(n: int) -> Tensor:
        return points[torch.randint(len(points), (n,), generator=generator)]

    centres = some(k)
    for _ in range(rounds):
        owner = nearest(points, centres)
        counts = torch.bincount(owner, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        centres[empty] = some(len(empty))
    return centres


def residual_k_means(points: Tensor, k: int, levels: int, *, seed: int) -> Tensor:
    """Codebooks [levels, k, D], each of what those before leave over (Zeghidour et al. 2021)."""
    rest, books = points, []
    for level in range(levels):
        book = k_means(rest, k, seed=seed + level, rounds=12)
        books.append(book)
        rest = rest - book[nearest(rest, book)]
    return torch.stack(books)


def residual_codes(points: Tensor, books: Tensor) -> Tensor:
    """int64 [N, levels]."""
    rest, codes = points, []
    for book in books:
        code = nearest(rest, book)
        codes.append(code)
        rest = rest - book[code]
    return torch.stack(codes, 1)
