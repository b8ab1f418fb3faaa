"""The plain torch operations against float64, transformers' processors and published figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bark_fast import kernels


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def integers(high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def test_embedding_sum() -> None:
    tables = [randn(11, 6, seed=i) for i in range(3)]
    position_table = randn(9, 6, seed=5)
    ids = integers(11, 3, 7)
    ids[1, 2] = ids[0, 4] = ids[2, 4] = -1
    positions = integers(9, 7, seed=1)
    got = kernels.embedding_sum(ids, tables, positions=positions, position_table=position_table)
    for n in range(7):
        expected = position_table[positions[n]].double()
        for k in range(3):
            if ids[k, n] >= 0:
                expected = expected + tables[k][ids[k, n]].double()
        torch.testing.assert_close(got[n].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias: bool) -> None:
    x, weight, shift = randn(5, 48) * 3 + 1, randn(48, seed=1), randn(48, seed=2)
    got = kernels.layer_norm(x, weight, shift if bias else None)
    d = x.double()
    d = (d - d.mean(-1, keepdim=True)) / (d.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = d * weight.double() + (shift.double() if bias else 0)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


def test_linear() -> None:
    x, weight, bias = randn(5, 48), randn(20, 48, seed=1), randn(20, seed=2)
    norm, residual = (randn(48, seed=3), randn(48, seed=4)), randn(5, 20, seed=5)
    before = residual.clone()
    got = kernels.linear(x, weight, bias, norm=norm, gelu=True, residual=residual)
    y = kernels.layer_norm(x, *norm).double() @ weight.double().T + bias.double()
    expected = 0.5 * y * (1 + torch.erf(y / math.sqrt(2))) + before.double()
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5)
    assert torch.equal(residual, before), "the residual is an input"
    torch.testing.assert_close(kernels.linear(x, weight), x @ weight.T)


def test_linear_rows() -> None:
    x, weight = randn(4, 16), randn(30, 16, seed=1)
    got = kernels.linear_rows(x, weight, torch.tensor([20, 5, 20, 0]), n_rows=12, last_row=30)
    full = x @ weight.T
    torch.testing.assert_close(got[0, :10], full[0, 20:30])
    torch.testing.assert_close(got[1], full[1, 5:17])
    torch.testing.assert_close(got[3], full[3, :12])
    assert (got[0, 10:] == -math.inf).all()
    assert (got[2, 10:] == -math.inf).all()


class Sequences:
    """Sequences of given lengths on scattered pages of a cache filled with NaN."""

    def __init__(self, lengths: list[int], page_size: int, heads: int = 2, size: int = 8) -> None:
        self.lengths = lengths
        self.keys = [randn(n, heads, size, seed=10 + i) for i, n in enumerate(lengths)]
        self.values = [randn(n, heads, size, seed=50 + i) for i, n in enumerate(lengths)]
        counts = [-(-n // page_size) for n in lengths]
        order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(3)).tolist()
        self.k_pages = torch.full((len(order), heads, page_size, size), math.nan)
        self.v_pages = torch.full_like(self.k_pages, math.nan)
        self.tables = torch.zeros(len(lengths), max(counts), dtype=torch.int64)
        for i, count in enumerate(counts):
            self.tables[i, :count] = torch.tensor(order[:count])
            order = order[count:]
            place = torch.arange(lengths[i])
            slots = self.tables[i, place // page_size] * page_size + place % page_size
            kernels.write_pages(self.keys[i], self.values[i], self.k_pages, self.v_pages, slots)

    def expected(self, q: torch.Tensor, i: int) -> torch.Tensor:
        """Causal attention of the last len(q) tokens, in float64."""
        n, length = len(q), self.lengths[i]
        k, v = (t[i].double().transpose(0, 1) for t in (self.keys, self.values))
        scores = q.double().transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        mask = torch.ones(n, length, dtype=torch.bool).tril(length - n)
        return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("page_size", [1, 4, 64])
def test_paged_attention(page_size: int) -> None:
    """Prompts, extensions and single steps in one batch."""
    s = Sequences([1, 7, 8, 33, 64, 20], page_size)
    queries = [1, 7, 1, 5, 64, 0]
    q = randn(sum(queries), 2, 8, seed=99)
    starts = [0, *np.cumsum(queries).tolist()]
    got = kernels.paged_attention(
        q, s.k_pages, s.v_pages, block_tables=s.tables, query_starts=starts, kv_lengths=s.lengths
    )
    for i in range(len(queries)):
        own = slice(starts[i], starts[i + 1])
        torch.testing.assert_close(got[own].double(), s.expected(q[own], i), rtol=0, atol=1e-6)


def test_write_pages_touches_nothing_else() -> None:
    pages = torch.full((3, 2, 4, 8), math.nan)
    k = randn(2, 2, 8)
    kernels.write_pages(k, k, pages, pages.clone(), torch.tensor([5, 11]))
    assert torch.equal(pages[1, :, 1], k[0])
    assert torch.equal(pages[2, :, 3], k[1])
    assert int(torch.isnan(pages).sum()) == pages.numel() - k.numel()


def test_attention() -> None:
    q, k, v = (randn(2, 9, 3, 8, seed=i) for i in range(3))
    got = kernels.attention(q, k, v)
    d = [t.double().transpose(1, 2) for t in (q, k, v)]
    expected = (d[0] @ d[1].transpose(2, 3) / math.sqrt(8)).softmax(-1) @ d[2]
    torch.testing.assert_close(got.double(), expected.transpose(1, 2), rtol=0, atol=1e-6)


def test_codebook_sum() -> None:
    codes, tables = integers(10, 2, 3, 5), randn(3, 10, 4)
    got = kernels.codebook_sum(codes, tables)
    assert got.shape == (2, 4, 5)
    expected = sum(tables[k][codes[1, k, 4]] for k in range(3))
    torch.testing.assert_close(got[1, :, 4], expected)


# Sampling.


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of the Random123 library (Salmon et al. 2011), counter word 3 being 0.
        ((0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ],
)
def test_philox_known_answers(counter, key, expected) -> None:
    words = kernels.philox_uint32(*(torch.tensor([c]) for c in counter), torch.tensor([key]))
    assert tuple(int(w) for w in words) == expected


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in Python's own integers, from the paper's definition."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_by_hand() -> None:
    # The same library's all-ones and pi answers pin the hand-written version...
    ones = [0xFFFFFFFF] * 4
    assert philox_by_hand(ones, ones[:2]) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert philox_by_hand(pi, [0xA4093822, 0x299F31D0]) == [
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    ]
    # ... which pins ours, with keys of both signs.
    rng = np.random.default_rng(0)
    for _ in range(50):
        c0, c1, c2, lo, hi = (int(x) for x in rng.integers(2**32, size=5))
        seed = (hi << 32) | lo
        signed = seed - 2**64 if seed >= 2**63 else seed
        args = (torch.tensor([x]) for x in (c0, c1, c2, signed))
        words = [int(w) for w in kernels.philox_uint32(*args)]
        assert words == philox_by_hand([c0, c1, c2, 0], [lo, hi])


def draw(logits: torch.Tensor, **changes: object) -> torch.Tensor:
    n = len(logits)
    options: dict = {
        "temperature": torch.ones(n),
        "top_k": torch.zeros(n, dtype=torch.int64),
        "top_p": torch.ones(n),
        "seeds": torch.arange(n),
        "positions": torch.zeros(n, dtype=torch.int64),
        "stage": 0,
    } | changes
    return kernels.sample(logits, **options)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 50, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
def test_processed_logits_equal_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = randn(6, 97) * 3
    logits[0, 5:20] = logits[0, 4]  # ties, at the k-th place too
    logits[1, 40:] = -math.inf
    expected = logits
    if temperature != 1.0:
        expected = TemperatureLogitsWarper(temperature)(None, expected)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    got = kernels.process_logits(
        logits,
        temperature=torch.full((6,), temperature),
        top_k=torch.full((6,), top_k),
        top_p=torch.full((6,), top_p),
    )
    assert torch.equal(got.isinf(), expected.isinf())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_rows_are_processed_by_their_own_parameters() -> None:
    logits = randn(3, 40)
    options = [(1.0, 0, 1.0), (0.5, 4, 1.0), (2.0, 0, 0.6)]
    columns = [torch.tensor(c) for c in zip(*options, strict=True)]
    together = kernels.process_logits(
        logits, temperature=columns[0], top_k=columns[1], top_p=columns[2]
    )
    for i, (t, k, p) in enumerate(options):
        alone = kernels.process_logits(
            logits[i : i + 1],
            temperature=torch.tensor([t]),
            top_k=torch.tensor([k]),
            top_p=torch.tensor([p]),
        )
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8)])
def test_draws_have_the_stated_distribution(top_k: int, top_p: float) -> None:
    """Chi-square over seeds and over positions, each 40 000 draws."""
    n, temperature = 40_000, 0.7
    row = randn(1, 12, seed=4) * 1.5
    limits = {"top_k": torch.tensor([top_k]), "top_p": torch.tensor([top_p])}
    probabilities = kernels.process_logits(row, temperature=torch.tensor([temperature]), **limits)
    probabilities = probabilities[0].double().softmax(-1).numpy()
    same = torch.zeros(n, dtype=torch.int64)
    for seeds, positions in ((torch.arange(n), same), (same + 7, torch.arange(n))):
        chosen = draw(
            row.expand(n, -1),
            temperature=torch.full((n,), temperature),
            top_k=limits["top_k"].expand(n),
            top_p=limits["top_p"].expand(n),
            seeds=seeds,
            positions=positions,
        )
        counts = np.bincount(chosen.numpy(), minlength=12)
        possible = probabilities > 0
        assert counts[~possible].sum() == 0
        assert stats.chisquare(counts[possible], probabilities[possible] * n).pvalue > 1e-3


def test_draws_of_neighbouring_positions_stages_and_ids_are_independent() -> None:
    n = 20_000
    uniform = torch.zeros(n, 8)
    at = torch.arange(n)
    seed = torch.zeros(n, dtype=torch.int64)
    first = draw(uniform, seeds=seed, positions=at)
    for second in (
        draw(uniform, seeds=seed, positions=at + 1),
        draw(uniform, seeds=seed, positions=at, stage=1),
        draw(uniform, seeds=seed + 1, positions=at),
    ):
        table = np.zeros((8, 8))
        np.add.at(table, (first.numpy(), second.numpy()), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_row_draws_the_same_in_any_batch() -> None:
    logits = randn(18, 300)
    options = {
        "temperature": torch.linspace(0, 2, 18),
        "top_k": integers(50, 18),
        "top_p": torch.linspace(0.3, 1, 18),
        "seeds": torch.arange(18) * 977 - 5,
        "positions": integers(10_000, 18, seed=2),
        "min_eos_p": torch.linspace(0, 0.01, 18),
    }
    together = draw(logits, **options)
    assert len(set(together.tolist())) > 5
    for order in (range(18), reversed(range(18))):
        rows = list(order)
        shuffled = draw(logits[rows], **{k: v[rows] for k, v in options.items()})
        assert torch.equal(shuffled, together[rows])
    for i in range(18):
        alone = draw(logits[i : i + 1], **{k: v[i : i + 1] for k, v in options.items()})
        assert alone.item() == together[i].item()


def test_greedy_takes_the_first_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 0.0, 5.0, 5.0]])
    assert draw(logits, temperature=torch.zeros(2)).tolist() == [1, 0]


def test_min_eos_p() -> None:
    logits = torch.tensor([[4.0, 0.0, 2.0]]).expand(4, -1)
    p_end = float(logits[0].softmax(0)[-1])  # 0.117
    thresholds = torch.tensor([0.0, p_end - 1e-3, p_end + 1e-3, 1.0])
    # Before temperature: at 100 the end token's share would be a third.
    chosen = draw(logits, temperature=torch.tensor([0.0, 0.0, 0.0, 0.0]), min_eos_p=thresholds)
    assert chosen.tolist() == [0, 2, 0, 0]
    hot = draw(
        logits.repeat(50, 1), temperature=torch.full((200,), 100.0), min_eos_p=thresholds.repeat(50)
    )
    assert (hot.view(50, 4)[:, 1] == 2).all()
    assert not (hot.view(50, 4)[:, 2] == 2).all()
