"""Sampling: the noise's integers, the processed logits, the distribution, and the decode loop."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bark_fast import kernels
from bark_fast.kernels import reference
from helpers.kernels import DEVICE, guarded_outputs, integers, randn


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of the Random123 library (Salmon et al. 2011), counter word 3 being 0.
        ((0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ],
)
def test_philox_known_answers(counter, key, expected) -> None:
    words = reference.philox_uint32(*(torch.tensor([c]) for c in counter), torch.tensor([key]))
    assert tuple(int(w) for w in words) == expected


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Compute Philox-4x32-10 in Python's integers, from the paper's definition."""
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
    # ... which pins the reference, with keys of both signs.
    rng = np.random.default_rng(0)
    for _ in range(50):
        c0, c1, c2, lo, hi = (int(x) for x in rng.integers(2**32, size=5))
        seed = (hi << 32) | lo
        signed = seed - 2**64 if seed >= 2**63 else seed
        args = (torch.tensor([x]) for x in (c0, c1, c2, signed))
        words = [int(w) for w in reference.philox_uint32(*args)]
        assert words == philox_by_hand([c0, c1, c2, 0], [lo, hi])


def draw(logits: torch.Tensor, **changes: object) -> torch.Tensor:
    """Sample with options by name: the end token counts where one of its two options is given."""
    n = len(logits)
    options: dict = {
        "temperature": torch.ones(n),
        "top_k": torch.zeros(n, dtype=torch.int64),
        "top_p": torch.ones(n),
        "seeds": torch.arange(n),
        "min_eos_p": torch.zeros(n),
        "min_new_tokens": torch.zeros(n, dtype=torch.int64),
        "suno_rules": torch.zeros(n, dtype=torch.int64),
        "positions": torch.zeros(n, dtype=torch.int64),
        "stage": 0,
        "has_end": not changes.keys().isdisjoint({"min_eos_p", "min_new_tokens"}),
    } | changes
    options = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    rows = {f.name: options.pop(f.name) for f in fields(kernels.SamplingMetadata)}
    space = {f.name: options.pop(f.name) for f in fields(kernels.TokenSpace) if f.name in options}
    return kernels.sample(
        logits.to(DEVICE), kernels.SamplingMetadata(**rows), kernels.TokenSpace(**space), **options
    )


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 50, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
def test_processed_logits_equal_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = randn(6, 97).cpu() * 3
    if top_p == 1:
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
    logits = randn(3, 40).cpu()
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
    row = randn(1, 12, seed=4).cpu() * 1.5
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
        counts = np.bincount(chosen.cpu().numpy(), minlength=12)
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
        np.add.at(table, (first.cpu().numpy(), second.cpu().numpy()), 1)
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_end_is_impossible_before_min_new_tokens(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 50.0]]).expand(3, -1)
    chosen = draw(
        logits,
        temperature=torch.full((3,), temperature),
        min_eos_p=torch.tensor([0.0, 0.2, 0.2]),
        min_new_tokens=torch.tensor([6, 6, 5]),
        positions=torch.full((3,), 5),
    ).tolist()
    assert chosen[0] != 2
    assert chosen[1] != 2
    assert chosen[2] == 2


def test_equal_logits_are_kept_or_dropped_together() -> None:
    """Ties, for which transformers' result depends on the order of a sort."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    p = logits[0].softmax(0)
    for top_p, kept in (
        (float(p[0]) - 0.01, 1),
        (float(p[0] + p[1]), 4),
        (float(p[:4].sum()) - 0.01, 4),
        (float(p[:4].sum()) + 0.01, 5),
    ):
        got = kernels.process_logits(
            logits,
            temperature=torch.ones(1),
            top_k=torch.zeros(1, dtype=torch.int64),
            top_p=torch.tensor([top_p]),
        )
        assert int(got.isfinite().sum()) == kept


# The compiled backends against the reference.


def test_random_words_equal_the_reference(compiled_impl) -> None:
    seeds = torch.tensor([0, 1, -1, 2**62 + 12345, -(2**63), 2**63 - 1], device=DEVICE)
    positions = torch.tensor([0, 7, 2**32 - 1, 767, 2**31, 1], device=DEVICE)
    for stage, n_ids in ((0, 101), (2, 4), (1, 1)):
        options = {"stage": stage, "n_ids": n_ids}
        got = kernels.random_words(seeds, positions, impl=compiled_impl, **options)
        assert torch.equal(got, kernels.random_words(seeds, positions, impl="torch", **options))


def options_of(n: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "temperature": torch.tensor(rng.choice([0.0, 0.5, 0.7, 1.0, 2.0], n), dtype=torch.float32),
        "suno_rules": torch.tensor(rng.integers(2, size=n)),
        "top_k": torch.tensor(rng.choice([0, 1, 5, 50, 10**6], n)),
        "top_p": torch.tensor(rng.choice([1.0, 0.95, 0.5, 1e-6], n), dtype=torch.float32),
        "seeds": torch.tensor(rng.integers(-(2**63), 2**63 - 1, n)),
        "positions": torch.tensor(rng.integers(0, 10_000, n)),
        "stage": 1,
    }


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    columns=st.integers(1, 300), seed=st.integers(0, 10**6), eos=st.booleans(),
    ranges=st.integers(1, 3), half=st.booleans(),
)  # fmt: skip
def test_draws_equal_the_reference(
    compiled_impl, columns: int, seed: int, eos: bool, ranges: int, half: bool
) -> None:
    n = 6
    logits = randn(n, columns, seed=seed) * 3
    if half:  # makes ties
        bfloat16 = (
            compiled_impl == "native" and kernels.why_not_native(DEVICE, torch.bfloat16) is None
        )
        logits = logits.to(torch.bfloat16 if bfloat16 else torch.float16)
        logits = logits if compiled_impl == "triton" or bfloat16 else logits.float()
    options = options_of(n, seed)
    if ranges > 1 and columns >= ranges:
        options |= {"n_ranges": ranges, "range_size": columns // ranges}
    elif eos:
        options["min_eos_p"] = torch.full((n,), 0.02)
        options["min_new_tokens"] = torch.tensor([0, 10_001, 5_000, 0, 10_001, 9_999])
    assert draw(logits, **options, impl=compiled_impl).tolist() == draw(logits, **options).tolist()


@pytest.mark.parametrize("columns", [1024, 2096, 10_001])
def test_draws_at_the_models_sizes(compiled_impl, monkeypatch, columns: int) -> None:
    logits = randn(4, columns) * 2
    options = options_of(4, 3) | {"temperature": torch.tensor([0.7, 1.0, 0.3, 0.0])}
    with guarded_outputs(monkeypatch):
        got = draw(logits, **options, impl=compiled_impl)
    assert got.tolist() == draw(logits, **options).tolist()


def test_a_row_draws_the_same_in_any_batch_of_the_compiled(compiled_impl) -> None:
    logits = randn(18, 120)
    options = options_of(18, 5)
    together = draw(logits, **options, impl=compiled_impl).tolist()
    for i in (0, 7, 17):
        alone = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        assert draw(logits[i : i + 1], **alone, impl=compiled_impl).tolist() == [together[i]]


def loop_state(n: int, page_size: int) -> kernels.DecodeState:
    def full(value: int, *shape: int, of: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.full(shape, value, dtype=of, device=DEVICE)

    positions = torch.arange(n, device=DEVICE) + 5
    tables = torch.randperm(n * 8, generator=torch.Generator().manual_seed(0)).view(n, 8).to(DEVICE)
    at = (positions // page_size)[:, None]
    return kernels.DecodeState(
        token_ids=full(0, n),
        positions=positions,
        seq_lens=positions + 1,
        slot_mapping=tables.gather(1, at)[:, 0] * page_size + positions % page_size,
        block_tables=tables,
        num_generated=full(0, n),
        limits=torch.tensor([1, 3, 6, 9][:n], device=DEVICE),
        finished=full(0, n, of=torch.int32),
        history=full(-1, n, 9),
        page_size=page_size,
    )


@pytest.mark.parametrize("eos", [True, False])
def test_the_loop_needs_no_host(compiled_impl, eos: bool) -> None:
    """After each of ten draws, the state for the next step equals the reference's."""
    n, page_size = 4, 4
    states = {impl: loop_state(n, page_size) for impl in ("torch", compiled_impl)}
    options = options_of(n) | {"temperature": torch.ones(n), "first_id": 1000}
    if eos:
        options["min_eos_p"] = torch.tensor([0.0, 0.08, 0.0, 0.03])
        options["min_new_tokens"] = torch.tensor([0, 0, 4, 2])
    for step in range(10):
        logits = randn(n, 30, seed=step) * 1.5
        for impl, state in states.items():
            draw(logits, **options, state=state, impl=impl)
        for f in fields(kernels.DecodeState):
            a, b = (getattr(state, f.name) for state in states.values())
            assert a == b if isinstance(a, int) else torch.equal(a, b), (step, f.name)
    state = states["torch"]
    assert state.finished.all()
    if not eos:
        assert state.num_generated.tolist() == [1, 3, 6, 9]
        # The last token of a row is never run, so its position is the one before.
        assert state.positions.tolist() == [5, 8, 12, 16]
    # Rows that have ended are empty.
    assert state.seq_lens.tolist() == [0] * n
    assert state.slot_mapping.tolist() == [-1] * n
    for row in range(n):
        drawn = state.history[row, : int(state.num_generated[row])]
        assert (drawn >= 1000).all()
        assert (state.history[row, int(state.num_generated[row]) :] == -1).all()
