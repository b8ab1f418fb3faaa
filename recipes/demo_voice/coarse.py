"""Trains the coarse model: units to the first two codebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.demo_voice import features, tokens
from recipes.demo_voice.clock import CLOCK_SIZE, Look, projected, start_with_clock
from recipes.demo_voice.common import (
    CODES,
    FRAME_S,
    NONE,
    POSITIONS_A_BATCH,
    UNIT_S,
    UNITS,
    WITH_PADS,
    WITH_PAST,
    Sentences,
    device,
    looks,
    mistake,
    of_pairs,
)
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.network import CausalModel, Shape
from recipes.demo_voice.precision import half

COARSE = Shape(4, 256, tokens.COARSE_PROMPT + 1 + tokens.COARSE_HISTORY + tokens.COARSE_STEP, 32)
_MISTAKEN = 0.5  # of the codes that are given in a row, at most
_SAVED = 40  # pads of a prompt, about, where they are left out


def build_coarse() -> CausalModel:
    return CausalModel(COARSE, tokens.COARSE_IDS, tokens.COARSE_PAD)


# The sound of a frame is decided by the phonemes around it, and by what was said just before.
_COARSE_LOOKS = (
    (*looks(units=(0, 1, -1, 2, -2, 3)), Look(-FRAME_S, CODES)),
    (*looks(units=(0, 1, -1, 4, -3)), Look(-FRAME_S, CODES)),
    looks(units=(0, 1, -1)),
    looks(units=(0,)),
)


def start_coarse(model: CausalModel, books: Mapping[str, Tensor]) -> None:
    """Give every token an embedding of what it stands for, and attention a sense of time: without
    them most of the training is spent on finding the units that a code belongs to."""
    units = (torch.arange(tokens.COARSE_PROMPT) + 0.5) * UNIT_S
    codes = torch.arange(COARSE.positions - tokens.COARSE_PROMPT) // tokens.N_COARSE
    times = torch.cat([units, (codes + 0.5) * FRAME_S])
    streams = torch.full_like(times, CODES)
    streams[: len(units)] = UNITS
    start_with_clock(model.body, times, streams, _COARSE_LOOKS)
    width = COARSE.width - CLOCK_SIZE
    envelopes = books["envelopes"][0] - books["envelopes"][0].mean(0)
    coded = (envelopes, features.pitch_vectors())
    with torch.no_grad():
        model.embedding.weight[:, :CLOCK_SIZE] = 0
        of_units = projected(of_pairs(books["units"]), width, std=0.7, seed=0)
        model.embedding.weight[: tokens.N_UNITS, CLOCK_SIZE:] = of_units
        for k, meanings in enumerate(coded):
            start = tokens.N_UNITS + k * tokens.CODEBOOK
            rows = slice(start, start + tokens.CODEBOOK)
            model.embedding.weight[rows] *= 0.4
            near = projected(meanings, width, std=0.7, seed=k + 1)
            model.embedding.weight[rows, CLOCK_SIZE:] += near
            model.head.weight[rows] += projected(meanings, COARSE.width, std=0.05, seed=k + 3)


def coarse_ids(codes: np.ndarray) -> np.ndarray:
    """Codes [>= 2, F] as the ids of the coarse model, frame by frame."""
    offsets = tokens.N_UNITS + tokens.CODEBOOK * np.arange(tokens.N_COARSE)[:, None]
    ids: np.ndarray = (codes[: tokens.N_COARSE] + offsets).T.reshape(-1)
    return ids


def coarse_window(
    units: np.ndarray,
    codes: np.ndarray,
    past_units: np.ndarray,
    past_codes: np.ndarray,
    window: int,
) -> tuple[np.ndarray, int]:
    """The ids of one window as Bark lays them out, and how many of them at the end are wanted.

    The voice's tokens (`past_...`) are cut to the same time, and its last frame is dropped, which
    a voice has twice for that (`export`).
    """
    ratio = tokens.COARSE_A_UNIT
    most = tokens.COARSE_HISTORY // ratio
    n = min(most, len(past_units) - len(past_units) % 2, len(past_codes) // ratio)
    before_units, before = (
        past_units[len(past_units) - n :],
        past_codes[len(past_codes) - n * ratio :],
    )
    before = before[2:]
    drawn = window * tokens.COARSE_STEP
    start = max(0, n + round(drawn / ratio) - most)
    seen = np.concatenate([before_units, units])[start : start + tokens.COARSE_PROMPT]
    prompt = np.full(tokens.COARSE_PROMPT + 1, tokens.COARSE_PAD, np.int64)
    prompt[: len(seen)] = seen
    prompt[-1] = tokens.COARSE_INFER
    history = np.concatenate([before, codes[:drawn]])[-tokens.COARSE_HISTORY :]
    wanted = codes[drawn : drawn + tokens.COARSE_STEP]
    return np.concatenate([prompt, history, wanted]), len(wanted)


def _coarse_example(
    spoken: Sentences, i: int, rng: np.random.Generator, *, with_past: bool
) -> np.ndarray:
    units, codes = spoken.units[i], coarse_ids(spoken.codes[i])
    window = int(rng.integers(max(1, -(-len(codes) // tokens.COARSE_STEP))))
    none = np.zeros(0, np.int64)
    past = (none, none)
    if with_past:
        j = spoken.another(i, rng)
        past = (spoken.units[j], coarse_ids(spoken.codes[j]))
    return coarse_window(units, codes, *past, window)[0]


@dataclass(frozen=True)
class CoarseBatch:
    """Rows of ids [B, P + 1 + T] behind a prompt of P; NONE behind the end.

    Attributes:
        given: ids as the model sees them, some of the codes mistaken.
    """

    ids: Tensor
    given: Tensor
    prompt: int

    @classmethod
    def of(
        cls, rows: list[np.ndarray], *, with_pads: bool, rng: np.random.Generator | None = None
    ) -> CoarseBatch:
        ids = torch.full((len(rows), max(map(len, rows))), NONE)
        for row, own in zip(ids, rows, strict=True):
            row[: len(own)] = torch.from_numpy(own)
        prompt = tokens.COARSE_PROMPT
        if not with_pads:
            prompt = int((ids[:, :prompt] != tokens.COARSE_PAD).sum(1).max())
            ids = torch.cat([ids[:, :prompt], ids[:, tokens.COARSE_PROMPT :]], 1)
        given = ids.clone()
        if rng is not None:
            for k in range(tokens.N_COARSE):
                mistake(given[:, prompt + 1 + k :: tokens.N_COARSE], rng, _MISTAKEN)
        return cls(ids, given, prompt)

    def losses(self, model: CausalModel) -> dict[str, Tensor]:
        """Of the two codebooks."""
        ids, given = (part.to(next(model.parameters()).device) for part in (self.ids, self.given))
        embedded = model.embedding(given[:, :-1].clamp(min=0))
        parts = {}
        with half(device()):
            states = model.states(embedded, self.prompt, tokens.COARSE_PROMPT)
            for k, name in enumerate(("envelope", "pitch")):
                # At each step only one codebook is possible; the others are never drawn.
                start = tokens.N_UNITS + k * tokens.CODEBOOK
                head = model.head.weight[start : start + tokens.CODEBOOK]
                target = ids[:, self.prompt + 1 + k :: tokens.N_COARSE]
                real = target != NONE
                logits = states[:, k :: tokens.N_COARSE][real] @ head.T
                parts[name] = F.cross_entropy(logits.float(), target[real] - start)
        return parts


def train_coarse(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """Units to the first two codebooks."""
    torch.manual_seed(seed + 1)
    spoken = Sentences(data)
    model = build_coarse()
    start_coarse(model, torch.load(data / "books.pt", weights_only=True))
    model.to(device())

    def batches(skip: int) -> Iterator[CoarseBatch]:
        rng = np.random.default_rng([seed, 1, skip])
        while True:
            # Some at a time, so that those of like length can go together.
            rows = [
                _coarse_example(spoken, spoken.one(rng, with_past=past), rng, with_past=past)
                for past in rng.random(128) < WITH_PAST
            ]
            rows.sort(key=len)
            groups: list[list[np.ndarray]] = [[]]
            for row in rows:
                if (len(groups[-1]) + 1) * (len(row) - _SAVED) > POSITIONS_A_BATCH:
                    groups.append([])
                groups[-1].append(row)
            for g in rng.permutation(len(groups)):
                with_pads = rng.random() < WITH_PADS
                yield CoarseBatch.of(groups[g], with_pads=with_pads, rng=rng)

    def loss_of(batch: CoarseBatch) -> tuple[Tensor, dict[str, float]]:
        parts = batch.losses(model)
        loss = (parts["envelope"] + parts["pitch"]) / 2
        return loss, {name: part.item() for name, part in parts.items()}

    rng = np.random.default_rng(0)
    rows = [
        _coarse_example(spoken, int(i), rng, with_past=k % 2 > 0)
        for k, i in enumerate(spoken.held_out[:64])
    ]
    fixed = CoarseBatch.of(rows, with_pads=True)

    def check() -> dict[str, float]:
        with torch.no_grad():
            return loss_of(fixed)[1]

    fit("coarse", model, batches, loss_of, plan, out, check=check)
