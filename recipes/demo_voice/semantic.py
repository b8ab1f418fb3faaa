"""Trains the semantic model: text to units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.demo_voice import tokens
from recipes.demo_voice.clock import CLOCK_SIZE, Look, projected, start_with_clock
from recipes.demo_voice.common import (
    NONE,
    POSITIONS_A_BATCH,
    TEXT,
    TEXT_TOKEN_S,
    UNIT_S,
    UNITS,
    WITH_PADS,
    Arrays,
    device,
    looks,
    mistake,
    of_pairs,
)
from recipes.demo_voice.data import Ragged, semantic_shards
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.network import CausalModel, Shape
from recipes.demo_voice.precision import half

SEMANTIC = Shape(5, 256, tokens.PROMPT + tokens.MAX_UNITS, 32)
_WITH_HISTORY = 0.5
# The share of the sentences with a spelled word that a round takes: half of all sentences have one,
# but few of those that people say.
_SPELLED = 0.35
_MISTAKEN = 0.2  # of the units that are given in a row, at most
_GUIDED_LAYER, _GUIDANCE = 2, 0.15
_TEXT_SIZE = 128  # of an embedding's dimensions, for what a token of the text is


def build_semantic() -> CausalModel:
    return CausalModel(SEMANTIC, tokens.SEMANTIC_IDS, tokens.N_UNITS + 1)


# Phonemes said before, and the words about here.
_SEMANTIC_LOOKS = (
    looks(units=(-1, -2, -3, -4), text=(0, 1, -1)),
    looks(units=(-1, -2, -5), text=(0, 1)),
    (Look(0, TEXT, 0.3), Look(TEXT_TOKEN_S, TEXT, 0.3)),
    (),
    (),
)


def start_semantic(model: CausalModel, books: Mapping[str, Tensor], said: Tensor) -> None:
    """Tell it what the teacher knows: the phonemes of a unit, and those of a word on its own.

    Args:
        said: phonemes [V, n] of each token of the text, -1 behind them and for letters.
    """
    text = (torch.arange(tokens.PROMPT) + 0.5) * TEXT_TOKEN_S
    units = (torch.arange(SEMANTIC.positions - tokens.PROMPT) + 0.5) * UNIT_S
    streams = torch.full((SEMANTIC.positions,), UNITS)
    streams[: tokens.PROMPT] = TEXT
    start_with_clock(model.body, torch.cat([text, units]), streams, _SEMANTIC_LOOKS)
    pairs = of_pairs(books["units"])
    start = SEMANTIC.width - _TEXT_SIZE
    order = F.one_hot(said + 1, int(said.max()) + 2)[..., 1:].float()
    places = torch.cat([order.flatten(1), 0.5 * order.sum(1)], 1)
    with torch.no_grad():
        table = model.embedding.weight
        table[:, :CLOCK_SIZE] = 0
        table[: tokens.END, start:] = 0
        of_units = projected(pairs, start - CLOCK_SIZE, std=0.7, seed=0)
        table[: tokens.N_UNITS, CLOCK_SIZE:start] = of_units
        table[tokens.TEXT_OFFSET : tokens.TEXT_PAD, CLOCK_SIZE:start] = 0
        words = projected(places, _TEXT_SIZE, std=0.7, seed=1)
        known = said[:, 0] >= 0
        rows = table[tokens.TEXT_OFFSET : tokens.TEXT_PAD, start:]
        rows[known] = 0.4 * rows[known] + words[known]
        head = projected(pairs, SEMANTIC.width, std=0.05, seed=2)
        model.head.weight[: tokens.N_UNITS] += head


def tokens_said(text: np.ndarray, phonemes: np.ndarray, space: int) -> np.ndarray | None:
    """Which token of the text is said in each unit, and which comes after that word, [2, S + 1].

    Words are told by the spaces in what the teacher says; None if it has other words than the text
    (numbers, say).
    """
    words: list[list[int]] = []
    joined = False
    for i, token in enumerate(text.tolist()):
        piece = tokens.VOCABULARY[token]
        if piece.startswith("##") or (joined and words):
            words[-1].append(i)
            joined = False
        elif piece in ("'", "-"):
            joined = True
        elif piece[0].isalnum():
            words.append([i])
    blank = phonemes == space
    word = np.cumsum(blank[1:] & ~blank[:-1])
    if not words or word[-1] + 1 != len(words):
        return None
    word = np.concatenate([[0], word])
    starts = np.searchsorted(word, np.arange(len(words) + 1))
    frames = np.arange(len(word))
    share = (frames - starts[word]) / (starts[word + 1] - starts[word])
    now = np.array([words[w][int(s * len(words[w]))] for w, s in zip(word, share, strict=True)])
    firsts = np.array([*(own[0] for own in words[1:]), len(text) - 1])
    both = np.stack([now, firsts[word]])[:, 1::2]
    return np.concatenate([both, np.full((2, 1), len(text) - 1)], 1)


@dataclass(frozen=True)
class SemanticBatch:
    """Text and history streams [B, P], units [B, S + 1] with the end and then NONE.

    Without pads P is the longest text, and of a history there is what stands beside it.

    Attributes:
        given: units as the model sees them, some mistaken.
        said: the tokens of the text to look at, [B, 2, S + 1], or NONE.
    """

    text: Tensor
    past: Tensor
    target: Tensor
    given: Tensor
    said: Tensor

    @classmethod
    def of(
        cls,
        texts: Arrays,
        histories: Arrays,
        units: Arrays,
        *,
        with_pads: bool,
        said: Sequence[np.ndarray | None] = (),
        rng: np.random.Generator | None = None,
    ) -> SemanticBatch:
        prompts = [
            tokens.semantic_prompt(t.tolist(), h.tolist())
            for t, h in zip(texts, histories, strict=True)
        ]
        width = tokens.PROMPT if with_pads else min(max(map(len, texts)), tokens.PROMPT)
        longest = max(map(len, units)) + 1
        target = torch.full((len(units), longest), NONE)
        for row, own in zip(target, units, strict=True):
            row[: len(own)] = torch.from_numpy(own.astype(np.int64))
            row[len(own)] = tokens.END
        text, past = (torch.tensor([p[i] for p in prompts])[:, :width] for i in (0, 1))
        where = torch.full((len(units), 2, longest), NONE)
        for place, tokens_of_it in zip(where, said, strict=False):
            if tokens_of_it is not None:
                place[:, : tokens_of_it.shape[1]] = torch.from_numpy(tokens_of_it)
        given = target[:, :-1].clone()
        if rng is not None:
            mistake(given, rng, _MISTAKEN)
        return cls(text, past, target, given, where)

    def logits(self, model: CausalModel) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [N, n_out], the N units that are right, the loss of the attention that should be
        at the words being said)."""
        own = next(model.parameters()).device
        parts = (self.text, self.past, self.target, self.given, self.said)
        text, past, target, given, said = (part.to(own) for part in parts)
        embed = model.embedding
        given = given.clamp(min=0)
        infer = torch.full_like(given[:, :1], tokens.SEMANTIC_INFER)
        x = torch.cat([embed(text) + embed(past), embed(torch.cat([infer, given], 1))], 1)
        real = target != NONE
        p = text.shape[1]
        with half(own):
            states, query, key = model.body(x, (p, tokens.PROMPT), _GUIDED_LAYER)
            logits = model.head(states[:, p:][real])
            scores = query[:, :2, p:] @ key[:, :2].transpose(2, 3) * SEMANTIC.head_size**-0.5
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(p + 1)
        scores = scores.float().masked_fill(later, -1e4)
        looked = F.cross_entropy(scores.flatten(0, 2), said.flatten(), ignore_index=NONE)
        return logits.float(), target[real], looked


def train_semantic(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """Text to units."""
    torch.manual_seed(seed)
    model = build_semantic()
    books = torch.load(data / "books.pt", weights_only=True)
    words = torch.load(data / "words.pt", weights_only=True)
    start_semantic(model, books, words["said"])
    model.to(device())
    none = np.zeros(0, np.int16)
    phonemes = books["units"].numpy()

    def where(text: np.ndarray, units: np.ndarray) -> np.ndarray | None:
        return tokens_said(text, phonemes[units].ravel(), int(words["space"]))

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
                size = POSITIONS_A_BATCH // (int(lengths[order[start]]) + 20)
                groups.append(order[start : start + max(size, 1)])
                start += max(size, 1)
            for g in rng.permutation(len(groups)):
                chosen = [pairs[i] for i in groups[g]]
                with_pads = rng.random() < WITH_PADS
                histories = [
                    pairs[i][1] if rng.random() < _WITH_HISTORY else none
                    for i in rng.integers(len(pairs), size=len(chosen))
                ]
                texts, units = zip(*chosen, strict=True)
                said = [where(*pair) for pair in chosen]
                yield SemanticBatch.of(
                    texts, histories, units, with_pads=with_pads, said=said, rng=rng
                )

    def loss_of(batch: SemanticBatch) -> tuple[Tensor, dict[str, float]]:
        logits, target, looked = batch.logits(model)
        loss = F.cross_entropy(logits, target)
        return loss + _GUIDANCE * looked, {"loss": loss.item(), "looked": looked.item()}

    texts = Ragged.load(data / "texts-held_out.npy")
    units = Ragged.load(data / "units-held_out.npy")
    n = len(texts)
    histories = [none if i % 2 else units[i - 1] for i in range(n)]
    said = [where(texts[i], units[i]) for i in range(n)]
    fixed = SemanticBatch.of(
        [texts[i] for i in range(n)],
        histories,
        [units[i] for i in range(n)],
        with_pads=True,
        said=said,
    )

    def check() -> dict[str, float]:
        with torch.no_grad():
            logits, target, looked = fixed.logits(model)
        # Where the unit changes is where something has to be known.
        new = torch.ones_like(target, dtype=torch.bool)
        new[1:] = target[1:] != target[:-1]
        hit = logits.argmax(-1) == target
        return {
            "loss": F.cross_entropy(logits, target).item(),
            "right": hit.float().mean().item(),
            "right_at_changes": hit[new].float().mean().item(),
            "looked": looked.item(),
        }

    fit("semantic", model, batches, loss_of, plan, out, check=check)
