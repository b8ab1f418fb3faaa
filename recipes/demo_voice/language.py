"""Trains the three transformers on the tokens that `data` made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.demo_voice import tokens
from recipes.demo_voice.data import Ragged, semantic_shards
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.network import CausalModel, FineModel, Shape, clock

SEMANTIC = Shape(5, 256, tokens.PROMPT + tokens.MAX_UNITS)
COARSE = Shape(4, 256, tokens.COARSE_PROMPT + 1 + tokens.COARSE_HISTORY + tokens.COARSE_STEP)
FINE = Shape(3, 128, tokens.FINE_WINDOW)
_POSITIONS_A_BATCH = 4800
_WITHOUT_HISTORY = 0.5
_NONE = -100  # cross_entropy's mark of what is not to be predicted


def _half() -> torch.autocast:
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_semantic() -> CausalModel:
    model = CausalModel(SEMANTIC, tokens.SEMANTIC_IDS, tokens.N_UNITS + 1)
    # A letter is said in about 3 units: that is where attention looks first.
    said = torch.arange(tokens.PROMPT) * 3.2
    units = torch.arange(SEMANTIC.positions - tokens.PROMPT).float()
    model.body.positions.data = clock(torch.cat([said, units]) / 50, SEMANTIC.width)
    return model


def _semantic_inputs(
    texts: list[np.ndarray], histories: list[np.ndarray], units: list[np.ndarray]
) -> tuple[Tensor, Tensor, Tensor]:
    """(text stream [B, PROMPT], history stream, units [B, S + 1] with the end and then _NONE)."""
    prompts = [
        tokens.semantic_prompt(t.tolist(), h.tolist())
        for t, h in zip(texts, histories, strict=True)
    ]
    longest = max(map(len, units)) + 1
    target = torch.full((len(units), longest), _NONE)
    for row, own in zip(target, units, strict=True):
        row[: len(own)] = torch.from_numpy(own.astype(np.int64))
        row[len(own)] = tokens.END
    return torch.tensor([p[0] for p in prompts]), torch.tensor([p[1] for p in prompts]), target


def _semantic_logits(model: CausalModel, text: Tensor, past: Tensor, target: Tensor) -> Tensor:
    embed = model.embedding
    given = target[:, :-1].clamp(min=0)
    infer = torch.full_like(given[:, :1], tokens.SEMANTIC_INFER)
    x = torch.cat([embed(text) + embed(past), embed(torch.cat([infer, given], 1))], 1)
    return model(x, tokens.PROMPT)


def train_semantic(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """Text to units."""
    torch.manual_seed(seed)
    model = build_semantic().to(_device())

    def batches(skip: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rng = np.random.default_rng([seed, skip])
        while True:
            pairs = [
                (texts, units, i)
                for texts, units in semantic_shards(data)
                for i in range(len(texts))
                if len(units[i]) < tokens.MAX_UNITS and len(texts[i]) <= tokens.PROMPT
            ]
            lengths = np.array([len(units[i]) for _, units, i in pairs])
            # Alike in length, but not always with the same ones.
            order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)))
            groups, start = [], 0
            while start < len(order):
                size = _POSITIONS_A_BATCH // (tokens.PROMPT + int(lengths[order[start]]) + 20)
                groups.append(order[start : start + max(size, 1)])
                start += max(size, 1)
            for g in rng.permutation(len(groups)):
                chosen = [pairs[i] for i in groups[g]]
                others = [pairs[i] for i in rng.integers(len(pairs), size=len(chosen))]
                histories = [
                    np.zeros(0, np.int16) if rng.random() < _WITHOUT_HISTORY else units[i]
                    for _, units, i in others
                ]
                yield _semantic_inputs(
                    [texts[i] for texts, _, i in chosen],
                    histories,
                    [units[i] for _, units, i in chosen],
                )

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        text, past, target = (part.to(_device()) for part in batch)
        with _half():
            logits = _semantic_logits(model, text, past, target).float()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=_NONE)
        return loss, {"loss": loss.item()}

    texts = Ragged.load(data / "texts-held_out.npy") if _held_out(data) else None
    units = Ragged.load(data / "units-held_out.npy") if _held_out(data) else None

    def check() -> dict[str, float]:
        nonlocal texts, units
        if not _held_out(data):
            return {}
        if texts is None or units is None:
            texts = Ragged.load(data / "texts-held_out.npy")
            units = Ragged.load(data / "units-held_out.npy")
        short = [i for i in range(len(texts)) if len(texts[i]) <= tokens.PROMPT][:128]
        none = [np.zeros(0, np.int16)] * len(short)
        batch = _semantic_inputs([texts[i] for i in short], none, [units[i] for i in short])
        text, past, target = (part.to(_device()) for part in batch)
        with torch.no_grad(), _half():
            logits = _semantic_logits(model, text, past, target).float()
        real = target != _NONE
        loss = F.cross_entropy(logits[real], target[real]).item()
        # Where the unit changes is where something has to be known.
        new = real.clone()
        new[:, 1:] &= target[:, 1:] != target[:, :-1]
        hit = logits.argmax(-1) == target
        return {
            "loss": loss,
            "right": hit[real].float().mean().item(),
            "right_at_changes": hit[new].float().mean().item(),
        }

    fit("semantic", model, batches, loss_of, plan, out, check=check)


def _held_out(data: Path) -> bool:
    return (data / "units-held_out.npy").exists()


class Spoken:
    """The sentences of all speakers, and for each speaker which are theirs."""

    def __init__(self, data: Path) -> None:
        self.units = Ragged.load(data / "spoken_units.npy")
        self.codes = Ragged.load(data / "codes.npy")
        self.speakers = np.load(data / "speakers.npy")
        n_held_out = min(200, len(self.units) // 10)
        self.train = np.arange(n_held_out, len(self.units))
        self.held_out = np.arange(n_held_out)
        self._of = {s: self.train[self.speakers[self.train] == s] for s in set(self.speakers)}

    def another(self, i: int, rng: np.random.Generator) -> int:
        """A sentence of the same speaker."""
        return int(rng.choice(self._of[self.speakers[i]]))


def build_coarse() -> CausalModel:
    model = CausalModel(COARSE, tokens.COARSE_IDS, tokens.COARSE_PAD)
    units = torch.arange(tokens.COARSE_PROMPT + 1) / 50
    codes = torch.arange(COARSE.positions - tokens.COARSE_PROMPT - 1) / 150
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
    ratio = 3  # coarse tokens a unit: 2 * 75 / 50
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


def _coarse_example(spoken: Spoken, i: int, rng: np.random.Generator) -> np.ndarray:
    units, codes = spoken.units[i], coarse_ids(spoken.codes[i])
    codes = codes[: len(units) * 3 // 2 * 2]
    window = int(rng.integers(max(1, -(-len(codes) // tokens.COARSE_STEP))))
    none = np.zeros(0, np.int64)
    past = (none, none)
    if rng.random() > _WITHOUT_HISTORY / 2:
        j = spoken.another(i, rng)
        past = (spoken.units[j], coarse_ids(spoken.codes[j]))
    return coarse_window(units, codes, *past, window)[0]


def train_coarse(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """Units to the first two codebooks."""
    torch.manual_seed(seed + 1)
    spoken = Spoken(data)
    model = build_coarse().to(_device())

    def packed(rows: list[np.ndarray]) -> Tensor:
        ids = torch.full((len(rows), max(map(len, rows))), _NONE)
        for row, own in zip(ids, rows, strict=True):
            row[: len(own)] = torch.from_numpy(own)
        return ids

    def batches(skip: int) -> Iterator[Tensor]:
        rng = np.random.default_rng([seed, 1, skip])
        while True:
            # Some at a time, so that those of like length can go together.
            rows = [_coarse_example(spoken, int(i), rng) for i in rng.choice(spoken.train, 128)]
            rows.sort(key=len)
            groups: list[list[np.ndarray]] = [[]]
            for row in rows:
                if (len(groups[-1]) + 1) * len(row) > _POSITIONS_A_BATCH:
                    groups.append([])
                groups[-1].append(row)
            for g in rng.permutation(len(groups)):
                yield packed(groups[g])

    def loss_of(rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        rows = rows.to(_device())
        first = tokens.COARSE_PROMPT
        embedded = model.embedding(rows[:, :-1].clamp(min=0))
        parts = {}
        with _half():
            states = model.body(embedded)[:, first:]
            for k, name in enumerate(("envelope", "pitch")):
                # At each step only one codebook is possible; the others are never drawn.
                start = tokens.N_UNITS + k * tokens.CODEBOOK
                head = model.head.weight[start : start + tokens.CODEBOOK]
                target = rows[:, first + 1 + k :: tokens.N_COARSE]
                real = target != _NONE
                logits = states[:, k :: tokens.N_COARSE][real] @ head.T
                parts[name] = F.cross_entropy(logits.float(), target[real] - start)
        loss = (parts["envelope"] + parts["pitch"]) / 2
        return loss, {name: part.item() for name, part in parts.items()}

    rng = np.random.default_rng(0)
    fixed = packed([_coarse_example(spoken, int(i), rng) for i in spoken.held_out[:64]])

    def check() -> dict[str, float]:
        with torch.no_grad():
            return loss_of(fixed)[1]

    fit("coarse", model, batches, loss_of, plan, out, check=check)


def build_fine() -> FineModel:
    model = FineModel(FINE, tokens.N_CODEBOOKS, tokens.FINE_IDS)
    model.body.positions.data = clock(torch.arange(FINE.positions) / 75, FINE.width)
    return model


def train_fine(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """The first codebooks to the other six."""
    torch.manual_seed(seed + 2)
    spoken = Spoken(data)
    model = build_fine().to(_device())
    size = 8

    def examples(
        which: np.ndarray, codebook: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, int]:
        """(codes [B, T, K], targets [B, T], codebook): as a window is when `codebook` is next."""
        codes = rng.integers(tokens.CODEBOOK, size=(len(which), tokens.FINE_WINDOW, 8))
        target = np.full((len(which), tokens.FINE_WINDOW), _NONE)
        codes[..., : tokens.N_COARSE] = tokens.FINE_PAD  # frames behind the end: pads, and what
        codes[..., codebook:] = tokens.FINE_PAD  # earlier passes wrote there
        for row, wanted, i in zip(codes, target, which, strict=True):
            n = 0
            if rng.random() > _WITHOUT_HISTORY / 2:
                past = spoken.codes[spoken.another(int(i), rng)].T[-tokens.FINE_HISTORY :]
                n = len(past)
                row[:n] = past
            own = spoken.codes[int(i)].T[: tokens.FINE_WINDOW - n]
            row[n : n + len(own), :codebook] = own[:, :codebook]
            wanted[n : n + len(own)] = own[:, codebook]
        return torch.from_numpy(codes), torch.from_numpy(target), codebook

    def batches(skip: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        rng = np.random.default_rng([seed, 2, skip])
        while True:
            codebook = int(rng.integers(tokens.N_COARSE, tokens.N_CODEBOOKS))
            yield examples(rng.choice(spoken.train, size), codebook, rng)

    def loss_of(batch: tuple[Tensor, Tensor, int]) -> tuple[Tensor, dict[str, float]]:
        codes, target, codebook = batch
        with _half():
            logits = model(codes.to(_device()), codebook, tokens.CODEBOOK).float()
        target = target.to(_device())
        real = target != _NONE
        loss = F.cross_entropy(logits[real], target[real])
        return loss, {"loss": loss.item()}

    rng = np.random.default_rng(0)
    fixed = [examples(spoken.held_out[:16], k, rng) for k in (2, 4, 7)]

    def check() -> dict[str, float]:
        with torch.no_grad():
            return {f"loss_{b[2]}": loss_of(b)[1]["loss"] for b in fixed}

    fit("fine", model, batches, loss_of, plan, out, check=check)
