"""Book-keeping of the pages of keys and values; the tensors are `models.gpt.KVPages`.

A page may have several owners. Prompts that begin alike share the pages that they fill together
(prefix caching: Kwon et al. 2023, section 4.4): a page is known by a key, the hash of all ids up to
its end, as long as nobody has written other content to it, even after its last owner has gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


class PagePool:
    """The pages of one causal stage.

    Attributes:
        n_pages: how many there are; each holds `page_size` positions.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.n_pages = n_pages
        self.page_size = page_size
        self.reset()

    def reset(self) -> None:
        """Take all pages from their owners, and know the content of none."""
        self._owners = [0] * self.n_pages
        self._free = dict.fromkeys(range(self.n_pages))  # the longest free first
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def used_pages(self) -> int:
        """Pages that have an owner."""
        return self.n_pages - len(self._free)

    @property
    def free_pages(self) -> int:
        """Pages without an owner."""
        return len(self._free)

    def pages_for(self, n_positions: int) -> int:
        """Return how many pages hold so many positions."""
        return -(-n_positions // self.page_size)

    def sole_pages(self, table: Sequence[int]) -> int:
        """Return how many pages would become free if the owner of `table` gave it back."""
        return sum(self._owners[page] == 1 for page in table)

    def allocate(self, table: list[int], n_pages: int) -> bool:
        """Append free pages until `table` has `n_pages`.

        Returns:
            False if too few are free; nothing is changed then.
        """
        missing = n_pages - len(table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            page = next(iter(self._free))
            del self._free[page]
            self._forget(page)
            self._owners[page] = 1
            table.append(page)
        return True

    def match_prefix(self, table: list[int], keys: Sequence[bytes]) -> int:
        """Append the pages that hold the content of the first `keys`; return how many there are."""
        n = 0
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            self._free.pop(page, None)
            self._owners[page] += 1
            table.append(page)
            n += 1
        return n

    def cache(self, table: Sequence[int], keys: Sequence[bytes]) -> None:
        """Record that page i of `table` holds the content of key i, or is about to."""
        for page, key in zip(table, keys, strict=False):
            if key not in self._page_of:
                self._page_of[key] = page
                self._key_of[page] = key

    def free(self, table: list[int], *, forget: bool = False) -> None:
        """Give back the pages of `table` and empty it; `forget` if their content never came."""
        for page in reversed(table):  # the start of a prompt stays known for longest
            self._owners[page] -= 1
            if forget:
                self._forget(page)
            if self._owners[page] == 0:
                self._free[page] = None
        table.clear()

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]


def prompt_keys(streams: Sequence[Sequence[int]], page_size: int) -> list[bytes]:
    """Return the keys of the pages that a prompt fills.

    The page with the last token is left out, because that token has to be run for its logits.

    Args:
        streams: [K][n] ids that are summed at each position.
    """
    keys: list[bytes] = []
    before = b""
    for i in range((len(streams[0]) - 1) // page_size):
        page = [tuple(stream[i * page_size : (i + 1) * page_size]) for stream in streams]
        before = hashlib.blake2b(before + repr(page).encode(), digest_size=16).digest()
        keys.append(before)
    return keys
