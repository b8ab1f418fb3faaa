"""What the trainings of the three transformers share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.demo_voice import tokens
from recipes.demo_voice.clock import Look
from recipes.demo_voice.data import Ragged

POSITIONS_A_BATCH = 2400
# A prompt's pads are attended, so a model has to see them; but not in every batch.
WITH_PADS = 0.2
# A voice is always given but for the first sentence of a text that has none.
WITH_PAST = 0.75
NONE = -100  # cross_entropy's mark of what is not to be predicted
UNIT_S, FRAME_S = 1 / tokens.SEMANTIC_RATE_HZ, 1 / tokens.FRAME_RATE_HZ
TEXT_TOKEN_S = 3.9 * UNIT_S  # how long a token of the text lasts, about
TEXT = CODES = -1  # streams beside the units
UNITS = 1

Arrays = Sequence[np.ndarray]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def looks(*, units: Sequence[int] = (), text: Sequence[int] = ()) -> tuple[Look, ...]:
    return (
        *(Look(n * UNIT_S, UNITS) for n in units),
        *(Look(n * TEXT_TOKEN_S, TEXT) for n in text),
    )


def of_pairs(units: Tensor) -> Tensor:
    """Float32 [N, 2 * phonemes] of units [N, 2]."""
    return F.one_hot(units, int(units.max()) + 1).flatten(1).float()


def mistake(given: Tensor, rng: np.random.Generator, most: float) -> None:
    """Put tokens from elsewhere in `given` [B, T], in some rows up to the share `most`. A model
    that sees no mistakes follows its own later rather than what it is to say."""
    share = torch.from_numpy(rng.uniform(-0.3 * most, most, (len(given), 1)))
    wrong = (torch.from_numpy(rng.random(given.shape)) < share) & (given != NONE)
    others = given[given != NONE]
    if len(others):
        given[wrong] = others[torch.from_numpy(rng.integers(len(others), size=int(wrong.sum())))]


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
