"""Pages: never two owners by accident, never lost, shared by content."""

from __future__ import annotations

import random

import pytest

from bark_fast.engine.kv_cache import PagePool, prompt_keys


def test_extend_and_release() -> None:
    pool = PagePool(5, page_size=4)
    assert [pool.pages_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    a: list[int] = []
    b: list[int] = []
    assert pool.allocate(a, 3)
    assert pool.allocate(a, 2)  # it has more already
    assert not pool.allocate(b, 3)
    assert b == []
    assert pool.allocate(b, 2)
    assert sorted(a + b) == list(range(5))
    assert (pool.used_pages, pool.free_pages) == (5, 0)
    pool.free(a)
    assert a == []
    assert pool.used_pages == 2


def test_keys_stand_for_all_that_came_before() -> None:
    a, b = prompt_keys([[1, 2, 3, 4, 5]], 2), prompt_keys([[9, 2, 3, 4, 5]], 2)
    assert len(a) == 2
    assert a[0] != b[0]
    assert a[1] != b[1]  # the same ids, after others
    assert prompt_keys([[1, 2, 3, 4, 9]], 2) == a  # the last token is in no key
    assert prompt_keys([[1, 2, 3, 4]], 2) == a[:1]  # the page with the last token is not shared
    assert prompt_keys([[1, 2, 3], [1, 2, 3]], 2) != prompt_keys([[1, 2, 3], [1, 1, 3]], 2)
    assert prompt_keys([[1]], 2) == []


def test_sharing() -> None:
    pool = PagePool(6, page_size=2)
    keys = prompt_keys([[1, 2, 3, 4, 5]], 2)
    a: list[int] = []
    assert pool.match_prefix(a, keys) == 0
    pool.allocate(a, 3)
    pool.cache(a, keys)
    b: list[int] = []
    assert pool.match_prefix(b, keys) == 2
    assert b == a[:2]
    pool.allocate(b, 3)
    assert pool.used_pages == 4
    assert pool.sole_pages(a) == 1
    pool.free(a)
    assert pool.used_pages == 3
    pool.free(b)
    assert pool.used_pages == 0
    # Known even now, until the page is used for something else.
    c: list[int] = []
    assert pool.match_prefix(c, keys) == 2
    pool.free(c)
    everything: list[int] = []
    pool.allocate(everything, 6)
    assert pool.match_prefix(c, keys) == 0


def test_what_was_never_written_is_not_shared() -> None:
    pool = PagePool(4, page_size=2)
    keys = prompt_keys([[1, 2, 3, 4, 5]], 2)
    a: list[int] = []
    pool.allocate(a, 3)
    pool.cache(a, keys)
    pool.free(a, forget=True)
    assert pool.match_prefix(a, keys) == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_history_ends_with_no_page_used(seed: int) -> None:
    rng = random.Random(seed)
    pool = PagePool(12, page_size=2)
    tables: list[tuple[list[int], list[int]]] = []  # prompt, pages
    for _ in range(400):
        if tables and rng.random() < 0.45:
            pool.free(tables.pop(rng.randrange(len(tables)))[1], forget=rng.random() < 0.1)
        else:
            prompt = [rng.randrange(2) for _ in range(rng.randint(1, 9))]
            keys = prompt_keys([prompt], 2)
            table: list[int] = []
            n = pool.match_prefix(table, keys)
            assert n <= len(keys)
            if pool.allocate(table, pool.pages_for(len(prompt))):
                pool.cache(table, keys)
                tables.append((prompt, table))
            else:
                pool.free(table)
        # A page with two owners holds the same prompt up to its end for both.
        content: dict[int, tuple[int, ...]] = {}
        for prompt, table in tables:
            assert len(set(table)) == len(table)
            for i, page in enumerate(table):
                whole = tuple(prompt[: 2 * (i + 1)])
                assert content.setdefault(page, whole) == whole
        assert pool.used_pages == len(content)
    for _, table in tables:
        pool.free(table)
    assert pool.used_pages == 0
