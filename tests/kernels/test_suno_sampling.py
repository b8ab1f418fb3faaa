"""Sampling by the rules of suno's code, on every backend, against these rules in plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bark_fast import kernels
from helpers.kernels import DEVICE, randn


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def probabilities(
    row: np.ndarray, *, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    """Return what suno-ai/bark's generation.py draws from: top-p, top-k, then temperature."""
    kept = np.ones(len(row), dtype=bool)
    if top_p is not None:
        order = np.argsort(-row)
        mass_before = np.concatenate([[0.0], np.cumsum(softmax(row)[order])[:-1]])
        kept[order] = mass_before <= top_p
    left = np.where(kept, row, -math.inf)
    if top_k is not None:
        left = np.where(left >= np.sort(left)[-min(top_k, len(left))], left, -math.inf)
    return softmax(left / temperature)


FILTERS = [(None, None), (3, None), (None, 0.5), (7, 0.9), (2, 0.9), (40, 0.3), (10**6, 1e-6)]


@pytest.fixture(params=["torch", "cpu", "native", "triton"])
def impl(request: pytest.FixtureRequest) -> str:
    """Return every backend that runs here."""
    missing = kernels.why_not_native(DEVICE, torch.float32)
    if request.param == "native" and missing:
        pytest.skip(f"no native kernels here: {missing}")
    if request.param == "cpu" and DEVICE.type != "cpu":
        pytest.skip("oneDNN is for CPUs")
    chosen: str = request.param
    return chosen


def draw(
    logits: torch.Tensor,
    *,
    impl: str,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_eos_p: float | None = None,
    position: int = 0,
    **space: int,
) -> list[int]:
    """Draw by suno's rules from each row, which has its own seed; `min_eos_p` gives it an end."""
    n = len(logits)

    def full(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((n,), value, dtype=dtype, device=DEVICE)

    metadata = kernels.SamplingMetadata(
        temperature=full(temperature, torch.float32),
        top_k=full(top_k or 0, torch.int64),
        top_p=full(1.0 if top_p is None else top_p, torch.float32),
        seeds=torch.arange(n, device=DEVICE),
        min_eos_p=full(min_eos_p or 0, torch.float32),
        min_new_tokens=full(0, torch.int64),
        suno_rules=full(1, torch.int64),
    )
    chosen = kernels.sample(
        logits.to(DEVICE).contiguous(),
        metadata,
        kernels.TokenSpace(stage=0, has_end=min_eos_p is not None, **space),
        positions=full(position, torch.int64),
        impl=impl,
    )
    return chosen.tolist()


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.6])
def test_processed_logits(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = randn(5, 60).cpu() * 2
    logits[1, 20:] = -math.inf
    got = kernels.process_logits(
        logits,
        temperature=torch.full((5,), temperature),
        top_k=torch.full((5,), top_k or 0),
        top_p=torch.full((5,), 1.0 if top_p is None else top_p),
        suno_rules=torch.ones(5, dtype=torch.bool),
    )
    for row, result in zip(logits.numpy(), got, strict=True):
        wanted = probabilities(row, temperature=temperature, top_k=top_k, top_p=top_p)
        np.testing.assert_allclose(result.softmax(0).numpy(), wanted, atol=1e-6)
        assert np.array_equal(result.isfinite().numpy(), wanted > 0)


def test_the_order_matters() -> None:
    """These are drawn under one rule and never under the other."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])

    def kept(suno: bool, **options: float) -> int:
        got = kernels.process_logits(
            logits,
            temperature=torch.tensor([options.get("temperature", 1.0)]),
            top_k=torch.tensor([int(options.get("top_k", 0))]),
            top_p=torch.tensor([options["top_p"]]),
            suno_rules=torch.tensor([suno]),
        )
        return int(got.isfinite().sum())

    assert (kept(True, top_p=0.8, temperature=3.0), kept(False, top_p=0.8, temperature=3.0)) == (
        2,
        4,
    )
    assert (kept(True, top_p=0.8, temperature=0.3), kept(False, top_p=0.8, temperature=0.3)) == (
        2,
        1,
    )
    assert (kept(True, top_p=0.7, top_k=2), kept(False, top_p=0.7, top_k=2)) == (2, 1)


def test_rows_of_both_rules_are_processed_alone() -> None:
    logits = randn(4, 30).cpu()
    rules = torch.tensor([True, False, True, False])
    options = {
        "temperature": torch.tensor([0.5, 0.5, 2.0, 2.0]),
        "top_k": torch.tensor([5, 5, 0, 0]),
        "top_p": torch.tensor([0.8, 0.8, 0.6, 1.0]),
    }
    together = kernels.process_logits(logits, **options, suno_rules=rules)
    for i in range(4):
        alone = {name: value[i : i + 1] for name, value in options.items()}
        by = {"suno_rules": rules[i : i + 1]} if rules[i] else {}
        expected = kernels.process_logits(logits[i : i + 1], **alone, **by)
        assert torch.equal(together[i : i + 1], expected)


@pytest.mark.parametrize("temperature", [0.6, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_draws(impl: str, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """The reference draws each possible id, and no other, about as often as it is likely; the other
    backends draw what it draws."""
    n = 3000 if impl == "torch" else 6
    row = randn(1, 12, seed=3).cpu() * 1.5
    wanted = probabilities(row[0].numpy(), temperature=temperature, top_k=top_k, top_p=top_p)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawn = draw(row.expand(n, -1), impl=impl, **options)
    if impl == "torch":
        counts = np.bincount(drawn, minlength=12)
        assert counts[wanted == 0].sum() == 0
        assert np.abs(counts / n - wanted).max() < 0.03
    else:
        assert drawn == draw(row.expand(n, -1), impl="torch", **options)


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_the_end_is_judged_last(
    impl: str, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """At a little less than the end token's probability all rows end; at a little more, those that
    draw it."""
    row = torch.tensor([[2.0, 1.5, 1.0, 0.5, -2.0, 1.8]])
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    p_end = float(probabilities(row[0].numpy(), **options)[-1])
    n = 40 if impl == "torch" else 4
    rows = row.expand(n, -1)
    if p_end > 0:
        assert draw(rows, impl=impl, min_eos_p=p_end - 1e-3, **options) == [5] * n
    drawn = draw(rows, impl=impl, min_eos_p=p_end + 1e-3, **options)
    assert drawn == draw(rows, impl="torch", min_eos_p=2.0, **options)
    assert n == 4 or (5 in drawn) == (p_end > 0)


def test_the_end_at_equality_and_at_the_edges(impl: str) -> None:
    half = torch.zeros(4, 2)  # two tokens, exactly as likely
    assert draw(half, impl=impl, min_eos_p=0.5) == [1] * 4
    assert draw(half, impl=impl, min_eos_p=0.5001, temperature=0.3) != [1] * 4
    unlikely = torch.tensor([[9.0, -math.inf]]).expand(3, -1)
    assert draw(unlikely, impl=impl, min_eos_p=1e-9) == [0] * 3
    # suno's >= is true of nothing, too.
    assert draw(unlikely, impl=impl, min_eos_p=0.0) == [1] * 3
    assert draw(unlikely, impl=impl, min_eos_p=0.0, temperature=0.0) == [1] * 3


def test_without_temperature_the_likeliest_has_all(impl: str) -> None:
    """The limit of ever lower temperatures, which suno's code cannot divide by."""
    row = torch.tensor([[1.0, 0.0, 0.9]]).expand(3, -1)
    for low in (0.0, 1e-3):
        assert draw(row, impl=impl, temperature=low, min_eos_p=0.01) == [0] * 3
        assert draw(row.flip(1), impl=impl, temperature=low, min_eos_p=1.0) == [2] * 3


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nothing_is_drawn_past_the_last_codebook(impl: str, temperature: float) -> None:
    logits = torch.zeros(6, 25)
    logits[:, 20:] = 50.0  # two codebooks of ten ids, and five more
    for position, allowed in ((0, range(10)), (1, range(10, 20)), (6, range(10)), (7, range(20))):
        drawn = draw(
            logits, impl=impl, temperature=temperature, position=position, n_ranges=2, range_size=10
        )
        assert set(drawn) <= set(allowed)
