"""Trains the fine model: the first two codebooks to the other six."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.demo_voice import features, tokens
from recipes.demo_voice.clock import CLOCK_SIZE, Look, projected, start_with_clock
from recipes.demo_voice.common import CODES, FRAME_S, NONE, WITH_PADS, WITH_PAST, Sentences, device
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.network import FineModel, Shape
from recipes.demo_voice.precision import half

_SOFTNESS = 0.03  # in mean squared distances of two codes
FINE = Shape(3, 128, tokens.FINE_WINDOW, 32)


def build_fine() -> FineModel:
    return FineModel(FINE, tokens.N_CODEBOOKS, tokens.FINE_IDS)


_FINE_LOOKS = (
    tuple(Look(n * FRAME_S, CODES) for n in (-1, 1, -2, 2)),
    tuple(Look(n * FRAME_S, CODES) for n in (-1, 1)),
    (),
)


def start_fine(model: FineModel, books: Mapping[str, Tensor]) -> None:
    """Give every code an embedding of what it stands for: those of the envelope in one space, so
    that their sum is the envelope so far. One dimension has its square, so that a product of states
    and embeddings can tell which code is the nearest."""
    times = (torch.arange(FINE.positions) + 0.5) * FRAME_S
    start_with_clock(model.body, times, torch.full_like(times, CODES), _FINE_LOOKS)
    envelopes = books["envelopes"].clone()
    envelopes[0] -= envelopes[0].mean(0)
    start = CLOCK_SIZE + 1
    width = FINE.width - start
    squares = (envelopes**2).sum(-1)
    squares = squares / squares.mean(1, keepdim=True).clamp(min=1e-6)
    near = projected(envelopes.flatten(0, 1), width, std=0.4, seed=0).view(*envelopes.shape[:2], -1)
    pitches = projected(features.pitch_vectors(), width, std=0.4, seed=1)
    with torch.no_grad():
        table = model.embeddings
        table[..., :start] = 0
        table[0, : tokens.CODEBOOK, start:] = near[0]
        table[1, : tokens.CODEBOOK, start:] = pitches
        table[2:, : tokens.CODEBOOK, start:] = near[1:]
        table[2:, : tokens.CODEBOOK, CLOCK_SIZE] = 0.2 * squares[1:]


@torch.no_grad()
def completed(model: FineModel, codes: Tensor) -> Tensor:
    """Codes [8, F] whose first two are those of `codes` [>= 2, F] and the others the model's."""
    n = codes.shape[1]
    made = torch.full((1, tokens.FINE_WINDOW, tokens.N_CODEBOOKS), tokens.FINE_PAD)
    made[0, :n, : tokens.N_COARSE] = codes[: tokens.N_COARSE].T
    for k in range(tokens.N_COARSE, tokens.N_CODEBOOKS):
        made[0, :, k] = model(made, k, tokens.CODEBOOK)[0].argmax(-1)
    return made[0, :n].T


def code_distances(books: Mapping[str, Tensor]) -> Tensor:
    """Squared distances [K, 1024, 1024] of the codes of each codebook, in its own spread; nothing
    for the pitch's, which is given."""
    envelopes = books["envelopes"]
    apart = torch.cdist(envelopes, envelopes) ** 2
    apart = apart / apart.mean((1, 2), keepdim=True).clamp(min=1e-6)
    return torch.cat([apart[:1], torch.zeros_like(apart[:1]), apart[1:]])


def train_fine(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """The first codebooks to the other six.

    What they add to the envelope can hardly be told from the first. A model that learns how likely
    each code is takes one that may be far off, so this one learns which is the least off.
    """
    torch.manual_seed(seed + 2)
    spoken = Sentences(data)
    books = torch.load(data / "books.pt", weights_only=True)
    model = build_fine()
    start_fine(model, books)
    model.to(device())
    apart = code_distances(books).to(device())
    size = 16

    def examples(
        which: Sequence[tuple[int, bool]],
        codebook: int,
        rng: np.random.Generator,
        *,
        with_pads: bool,
    ) -> tuple[Tensor, Tensor, int]:
        """(codes [B, T, K], targets [B, T], codebook): as a window is when `codebook` is next.

        `which` has the sentences, and whether another of the same voice is before each.
        """
        codes = rng.integers(tokens.CODEBOOK, size=(len(which), tokens.FINE_WINDOW, 8))
        target = np.full((len(which), tokens.FINE_WINDOW), NONE)
        codes[..., : tokens.N_COARSE] = tokens.FINE_PAD  # frames behind the end: pads, and what
        codes[..., codebook:] = tokens.FINE_PAD  # earlier passes wrote there
        used = 0
        for row, wanted, (i, with_past) in zip(codes, target, which, strict=True):
            n = 0
            if with_past:
                past = spoken.codes[spoken.another(i, rng)].T[-tokens.FINE_HISTORY :]
                n = len(past)
                row[:n] = past
            own = spoken.codes[i].T[: tokens.FINE_WINDOW - n]
            row[n : n + len(own), :codebook] = own[:, :codebook]
            wanted[n : n + len(own)] = own[:, codebook]
            used = max(used, n + len(own))
        width = tokens.FINE_WINDOW if with_pads else used
        return torch.from_numpy(codes[:, :width]), torch.from_numpy(target[:, :width]), codebook

    def batches(skip: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        rng = np.random.default_rng([seed, 2, skip])
        while True:
            codebook = int(rng.integers(tokens.N_COARSE, tokens.N_CODEBOOKS))
            pasts = (rng.random(size) < WITH_PAST).tolist()
            which = [(spoken.one(rng, with_past=past), past) for past in pasts]
            yield examples(which, codebook, rng, with_pads=rng.random() < 2 * WITH_PADS)

    def loss_of(batch: tuple[Tensor, Tensor, int]) -> tuple[Tensor, dict[str, float]]:
        codes, target, codebook = batch
        with half(device()):
            logits = model(codes.to(device()), codebook, tokens.CODEBOOK).float()
        target = target.to(device())
        real = target != NONE
        likely = logits[real].log_softmax(-1)
        off = (likely.exp() * apart[codebook, target[real]]).sum(-1).mean()
        # Without a price for certainty one code would soon be the answer to everything.
        certain = (likely.exp() * likely).sum(-1).mean()
        best = apart[codebook, likely.argmax(-1), target[real]].mean()
        return off + _SOFTNESS * certain, {"off": off.item(), "best": best.item()}

    rng = np.random.default_rng(0)
    some = [(int(i), n % 4 > 0) for n, i in enumerate(spoken.held_out[:16])]
    fixed = [examples(some, k, rng, with_pads=True) for k in (2, 4, 7)]

    def check() -> dict[str, float]:
        with torch.no_grad():
            return {f"best_{b[2]}": loss_of(b)[1]["best"] for b in fixed}

    fit("fine", model, batches, loss_of, plan, out, check=check)
