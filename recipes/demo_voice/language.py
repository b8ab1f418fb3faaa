"""Trains the three transformers on the tokens that `data` made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.demo_voice import tokens
from recipes.demo_voice.data import Ragged, semantic_shards
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.network import CausalModel, FineModel, Shape, clock
from recipes.demo_voice.precision import half

SEMANTIC = Shape(5, 256, tokens.PROMPT + tokens.MAX_UNITS)
COARSE = Shape(4, 256, tokens.COARSE_PROMPT + 1 + tokens.COARSE_HISTORY + tokens.COARSE_STEP)
FINE = Shape(3, 128, tokens.FINE_WINDOW)
_POSITIONS_A_BATCH = 2400
# A prompt's pads are attended, so a model has to see them; but not in every batch.
_WITH_PADS = 0.2
_WITH_HISTORY = 0.5
# The share of the sentences with a spelled word that a round takes: half of all sentences have one,
# but few of those that people say.
_SPELLED = 0.35
_NONE = -100  # cross_entropy's mark of what is not to be predicted
_UNITS_A_TEXT_TOKEN = 3.9
# A voice is always given but for the first sentence of a text that has none.
_WITH_PAST = 0.75
_SAVED = 40  # pads of a coarse prompt, about, where they are left out

Arrays = Sequence[np.ndarray]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_semantic() -> CausalModel:
    model = CausalModel(SEMANTIC, tokens.SEMANTIC_IDS, tokens.N_UNITS + 1)
    # Where attention looks first: a token of the text lasts about so long.
    said = torch.arange(tokens.PROMPT) * _UNITS_A_TEXT_TOKEN
    units = torch.arange(SEMANTIC.positions - tokens.PROMPT).float()
    times = torch.cat([said, units]) / tokens.SEMANTIC_RATE_HZ
    model.body.positions.data = clock(times, SEMANTIC.width)
    return model


@dataclass(frozen=True)
class SemanticBatch:
    """Text and history streams [B, P], units [B, S + 1] with the end and then _NONE.

    Without pads P is the longest text, and of a history there is what stands beside it.
    """

    text: Tensor
    past: Tensor
    target: Tensor

    @classmethod
    def of(
        cls, texts: Arrays, histories: Arrays, units: Arrays, *, with_pads: bool
    ) -> SemanticBatch:
        prompts = [
            tokens.semantic_prompt(t.tolist(), h.tolist())
            for t, h in zip(texts, histories, strict=True)
        ]
        width = tokens.PROMPT if with_pads else min(max(map(len, texts)), tokens.PROMPT)
        longest = max(map(len, units)) + 1
        target = torch.full((len(units), longest), _NONE)
        for row, own in zip(target, units, strict=True):
            row[: len(own)] = torch.from_numpy(own.astype(np.int64))
            row[len(own)] = tokens.END
        text, past = (torch.tensor([p[i] for p in prompts])[:, :width] for i in (0, 1))
        return cls(text, past, target)

    def logits(self, model: CausalModel) -> tuple[Tensor, Tensor]:
        """(logits [N, n_out], the N units that are right)."""
        device = next(model.parameters()).device
        text, past, target = (part.to(device) for part in (self.text, self.past, self.target))
        embed = model.embedding
        given = target[:, :-1].clamp(min=0)
        infer = torch.full_like(given[:, :1], tokens.SEMANTIC_INFER)
        x = torch.cat([embed(text) + embed(past), embed(torch.cat([infer, given], 1))], 1)
        real = target != _NONE
        with half(_device()):
            logits = model.head(model.states(x, text.shape[1], tokens.PROMPT)[real])
        return logits.float(), target[real]


def train_semantic(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """Text to units."""
    torch.manual_seed(seed)
    model = build_semantic().to(_device())
    none = np.zeros(0, np.int16)

    def batches(skip: int) -> Iterator[SemanticBatch]:
        rng = np.random.default_rng([seed, skip])
        while True:
            pairs = [
                (texts[i], units[i])
                for texts, units in semantic_shards(data)
                for i in range(len(texts))
                if len(units[i]) < tokens.MAX_UNITS
                and len(texts[i]) <= tokens.PROMPT
                and (rng.random() < _SPELLED or not tokens.SPELLED.intersection(texts[i].tolist()))
            ]
            lengths = np.array([len(units) + len(text) for text, units in pairs])
            # Alike in length, but not always with the same ones.
            order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)))
            groups, start = [], 0
            while start < len(order):
                size = _POSITIONS_A_BATCH // (int(lengths[order[start]]) + 20)
                groups.append(order[start : start + max(size, 1)])
                start += max(size, 1)
            for g in rng.permutation(len(groups)):
                chosen = [pairs[i] for i in groups[g]]
                with_pads = rng.random() < _WITH_PADS
                histories = [
                    pairs[i][1] if rng.random() < _WITH_HISTORY else none
                    for i in rng.integers(len(pairs), size=len(chosen))
                ]
                texts, units = zip(*chosen, strict=True)
                yield SemanticBatch.of(texts, histories, units, with_pads=with_pads)

    def loss_of(batch: SemanticBatch) -> tuple[Tensor, dict[str, float]]:
        loss = F.cross_entropy(*batch.logits(model))
        return loss, {"loss": loss.item()}

    texts = Ragged.load(data / "texts-held_out.npy")
    units = Ragged.load(data / "units-held_out.npy")
    n = len(texts)
    histories = [none if i % 2 else units[i - 1] for i in range(n)]
    fixed = SemanticBatch.of(
        [texts[i] for i in range(n)], histories, [units[i] for i in range(n)], with_pads=True
    )

    def check() -> dict[str, float]:
        with torch.no_grad():
            logits, target = fixed.logits(model)
        # Where the unit changes is where something has to be known.
        new = torch.ones_like(target, dtype=torch.bool)
        new[1:] = target[1:] != target[:-1]
        hit = logits.argmax(-1) == target
        return {
            "loss": F.cross_entropy(logits, target).item(),
            "right": hit.float().mean().item(),
            "right_at_changes": hit[new].float().mean().item(),
        }

    fit("semantic", model, batches, loss_of, plan, out, check=check)


class Sentences:
    """The sentences of all speakers, and for each speaker which are theirs."""

    def __init__(self, data: Path) -> None:
        self.units = Ragged.load(data / "spoken_units.npy")
        self.codes = Ragged.load(data / "codes.npy")
        self.speakers = np.load(data / "speakers.npy")
        n_held_out = min(200, len(self.units) // 10)
        self.train = np.arange(n_held_out, len(self.units))
        self.held_out = np.arange(n_held_out)
        self._of = {s: self.train[self.speakers[self.train] == s] for s in set(self.speakers)}

    def one(self, rng: np.random.Generator, *, with_past: bool) -> int:
        """A sentence to train on. Without a past it is the first speaker's, who is therefore the
        one that speaks when no voice is asked for."""
        return int(rng.choice(self.train if with_past else self._of[0]))

    def another(self, i: int, rng: np.random.Generator) -> int:
        """A sentence of the same speaker."""
        return int(rng.choice(self._of[self.speakers[i]]))


def build_coarse() -> CausalModel:
    model = CausalModel(COARSE, tokens.COARSE_IDS, tokens.COARSE_PAD)
    units = torch.arange(tokens.COARSE_PROMPT + 1) / tokens.SEMANTIC_RATE_HZ
    codes = torch.arange(COARSE.positions - tokens.COARSE_PROMPT - 1)
    codes = codes / tokens.N_COARSE / tokens.FRAME_RATE_HZ
    model.body.positions.data = clock(torch.cat([units, codes]), COARSE.width)
    return model


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

    The voice's tokens (`past_...`) are cut to the same time, and its last frame is dropped.
    """
    ratio = tokens.COARSE_A_UNIT
    most = tokens.COARSE_HISTORY // ratio
    n = min(most, len(past_units) - len(past_units) % 2, len(past_codes) // ratio)
    before_units, before = (
        past_units[len(past_units) - n :],
        past_codes[len(past_codes) - n * ratio :],
    )
    before = before[:-2] if n else before
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
    """Rows of ids [B, P + 1 + T] behind a prompt of P; _NONE behind the end."""

    ids: Tensor
    prompt: int

    @classmethod
    def of(cls, rows: list[np.ndarray], *, with_pads: bool) -> CoarseBatch:
        ids = torch.full((len(rows), max(map(len, rows))), _NONE)
        for row, own in zip(ids, rows, strict=True):
            row[: len(own)] = torch.from_numpy(own)
        prompt = tokens.COARSE_PROMPT
        if not with_pads:
            prompt = int((ids[:, :prompt] != tokens.COARSE_PAD).sum(1).max())
            ids = torch.cat([ids[:, :prompt], ids[:, tokens.COARSE_PROMPT :]], 1)
        return cls(ids, prompt)

    def losses(self, model: CausalModel) -> dict[str, Tensor]:
        """Of the two codebooks."""
        ids = self.ids.to(next(model.parameters()).device)
        embedded = model.embedding(ids[:, :-1].clamp(min=0))
        parts = {}
        with half(_device()):
            states = model.states(embedded, self.prompt, tokens.COARSE_PROMPT)
            for k, name in enumerate(("envelope", "pitch")):
                # At each step only one codebook is possible; the others are never drawn.
                start = tokens.N_UNITS + k * tokens.CODEBOOK
                head = model.head.weight[start : start + tokens.CODEBOOK]
                target = ids[:, self.prompt + 1 + k :: tokens.N_COARSE]
                real = target != _NONE
                logits = states[:, k :: tokens.N_COARSE][real] @ head.T
                parts[name] = F.cross_entropy(logits.float(), target[real] - start)
        return parts


def train_coarse(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """Units to the first two codebooks."""
    torch.manual_seed(seed + 1)
    spoken = Sentences(data)
    model = build_coarse().to(_device())

    def batches(skip: int) -> Iterator[CoarseBatch]:
        rng = np.random.default_rng([seed, 1, skip])
        while True:
            # Some at a time, so that those of like length can go together.
            rows = [
                _coarse_example(spoken, spoken.one(rng, with_past=past), rng, with_past=past)
                for past in rng.random(128) < _WITH_PAST
            ]
            rows.sort(key=len)
            groups: list[list[np.ndarray]] = [[]]
            for row in rows:
                if (len(groups[-1]) + 1) * (len(row) - _SAVED) > _POSITIONS_A_BATCH:
                    groups.append([])
                groups[-1].append(row)
            for g in rng.permutation(len(groups)):
                yield CoarseBatch.of(groups[g], with_pads=rng.random() < _WITH_PADS)

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


def build_fine() -> FineModel:
    model = FineModel(FINE, tokens.N_CODEBOOKS, tokens.FINE_IDS)
    model.body.positions.data = clock(
        torch.arange(FINE.positions) / tokens.FRAME_RATE_HZ, FINE.width
    )
    return model


def train_fine(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """The first codebooks to the other six."""
    torch.manual_seed(seed + 2)
    spoken = Sentences(data)
    model = build_fine().to(_device())
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
        target = np.full((len(which), tokens.FINE_WINDOW), _NONE)
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
            pasts = (rng.random(size) < _WITH_PAST).tolist()
            which = [(spoken.one(rng, with_past=past), past) for past in pasts]
            yield examples(which, codebook, rng, with_pads=rng.random() < 2 * _WITH_PADS)

    def loss_of(batch: tuple[Tensor, Tensor, int]) -> tuple[Tensor, dict[str, float]]:
        codes, target, codebook = batch
        with half(_device()):
            logits = model(codes.to(_device()), codebook, tokens.CODEBOOK).float()
        target = target.to(_device())
        real = target != _NONE
        loss = F.cross_entropy(logits[real], target[real])
        return loss, {"loss": loss.item()}

    rng = np.random.default_rng(0)
    some = [(int(i), n % 4 > 0) for n, i in enumerate(spoken.held_out[:16])]
    fixed = [examples(some, k, rng, with_pads=True) for k in (2, 4, 7)]

    def check() -> dict[str, float]:
        with torch.no_grad():
            return {f"loss_{b[2]}": loss_of(b)[1]["loss"] for b in fixed}

    fit("fine", model, batches, loss_of, plan, out, check=check)
