"""Pages of keys and values: who owns which. The tensors themselves are `models.gpt.KVPages`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bark_fast.checkpoint.config import GPTConfig
from bark_fast.models.gpt import KVPages


class KVCache:
    """The pages of one causal stage."""

    def __init__(
        self,
        config: GPTConfig,
        *,
        n_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pages = KVPages.allocate(config, n_pages, page_size, dtype=dtype, device=device)
        self._free = list(range(n_pages))[::-1]
        self._n_pages = n_pages

    @property
    def used_pages(self) -> int:
        return self._n_pages - len(self._free)

    @contextmanager
    def reserve(self, n_tokens: int) -> Iterator[list[int]]:
        """Pages for a sequence of at most `n_tokens`, free again when the block ends however it
        ends.

        Raises:
            MemoryError: there are not enough.
        """
        needed = -(-n_tokens // self.pages.page_size)
        if needed > len(self._free):
            raise MemoryError(
                f"{needed} pages of keys and values are needed, {len(self._free)} are free"
            )
        taken = [self._free.pop() for _ in range(needed)]
        try:
            yield taken
        finally:
            self._free.extend(reversed(taken))
