"""Makes what is trained on: sentences, units and codes, and the waves that the codec learns from.

A unit is what is heard in 50 ms: two phonemes, or one twice. The teacher tells them and when they
are, so they hold the words and nothing of the voice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from recipes.demo_voice import features, tokens
from recipes.demo_voice.quantize import residual_codes, residual_k_means
from recipes.demo_voice.teacher import SPEAKERS, Spoken, Teacher
from recipes.demo_voice.texts import held_out, make_texts

_FOR_BOOKS = 1_200  # sentences that units and codebooks are learned from
# Those of `learn_units`, written down: on another machine the teacher's durations have another
# rounding, and units that occur nearly as often would change places.
_UNITS = Path(__file__).with_name("units.txt")
_SHARD = 5_000
_SHARDS_FIRST = 4  # before any speech: enough for the semantic model to begin with meanwhile
_WAVES = 8_000  # sentences whose waves are kept: the codec needs no more, and they are large
_OF_THE_FIRST = 0.4  # of the sentences are spoken by the default voice


class Ragged:
    """Many arrays of unequal length (along the last axis) as one."""

    def __init__(self, flat: NDArray[np.integer], offsets: NDArray[np.int64]) -> None:
        self.flat, self.offsets = flat, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> NDArray[np.integer]:
        return self.flat[..., self.offsets[i] : self.offsets[i + 1]]

    @classmethod
    def of(cls, arrays: list[NDArray[np.integer]]) -> Ragged:
        lengths = [0, *(a.shape[-1] for a in arrays)]
        return cls(np.concatenate(arrays, -1), np.cumsum(lengths))

    def save(self, path: Path) -> None:
        np.save(path.with_suffix(".offsets.npy"), self.offsets)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, self.flat)
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> Ragged:
        return cls(np.load(path, mmap_mode="r"), np.load(path.with_suffix(".offsets.npy")))


_teacher: Teacher | None = None  # one a process


def the_teacher() -> Teacher:
    global _teacher
    if _teacher is None:
        torch.set_num_threads(1)
        _teacher = Teacher()
    return _teacher


def learn_units(sentences: list[NDArray[np.int64]]) -> Tensor:
    """The pairs of phonemes [N_UNITS, 2] that occur most; each phoneme twice is always one."""
    counts: Counter[tuple[int, ...]] = Counter()
    for phonemes in sentences:
        counts.update(map(tuple, phonemes.reshape(-1, 2).tolist()))
        for phoneme in phonemes.tolist():
            counts[phoneme, phoneme] += 1
    doubles = {pair for pair in counts if pair[0] == pair[1]}
    others = [pair for pair, _ in counts.most_common() if pair not in doubles]
    units = torch.zeros(tokens.N_UNITS, 2, dtype=torch.int64)
    found = torch.tensor([*sorted(doubles), *others][: tokens.N_UNITS])
    units[: len(found)] = found
    return units


def known_units(path: Path) -> Tensor:
    """The pairs of phonemes [N_UNITS, 2] that are written down."""
    return torch.tensor([[int(p) for p in line.split()] for line in path.read_text().splitlines()])


class Units:
    """Phonemes to units."""

    def __init__(self, pairs: Tensor) -> None:
        self._of = {tuple(pair): i for i, pair in reversed(list(enumerate(pairs.tolist())))}

    def __call__(self, phonemes: NDArray[np.int64]) -> NDArray[np.int16]:
        """Units [S] of phonemes [2 * S]. A pair without a unit is heard as its second phoneme, and
        a phoneme that was never seen as silence."""
        pairs = phonemes.reshape(-1, 2).tolist()
        return np.array(
            [self._of.get((a, b), self._of.get((b, b), self._of[0, 0])) for a, b in pairs], np.int16
        )


def _spoken(job: tuple[str, int]) -> tuple[Spoken, features.Array]:
    text, speaker = job
    spoken = the_teacher().say(text, SPEAKERS[speaker])
    return spoken, features.envelope(spoken.samples, len(spoken.phonemes))


def make_books(folder: Path, texts: list[str], pool: Any, seed: int) -> None:
    """Learn units and the codebooks of envelopes, [7, 1024, D]."""
    jobs = [(text, i % len(SPEAKERS)) for i, text in enumerate(texts[:_FOR_BOOKS])]
    made = list(tqdm(pool.imap(_spoken, jobs, 32), total=len(jobs), desc="codebooks"))
    points = torch.from_numpy(np.concatenate([envelope for _, envelope in made]))
    if _UNITS.exists():
        units = known_units(_UNITS)
    else:
        more = pool.imap(_phonemes, texts[_FOR_BOOKS : 6 * _FOR_BOOKS], 32)
        units = learn_units([spoken.phonemes for spoken, _ in made] + list(more))
    books = {
        "units": units,
        "envelopes": residual_k_means(points, tokens.CODEBOOK, tokens.N_CODEBOOKS - 1, seed=seed),
        "mean": points.mean(0),
    }
    torch.save(books, folder / "books.pt")


_books: dict[str, Tensor] | None = None


def _load_books(folder: Path) -> dict[str, Tensor]:
    global _books
    if _books is None:
        _books = torch.load(folder / "books.pt", weights_only=True)
    return _books


def _phonemes(text: str) -> NDArray[np.int64]:
    return the_teacher().phonemes(text)


def codes_of(folder: Path, spoken: Spoken) -> NDArray[np.int16]:
    """The codec's encoder: codes [8, F]; the second codebook holds pitch and phase."""
    shape = features.envelope(spoken.samples, len(spoken.phonemes))
    codes = residual_codes(torch.from_numpy(shape), _load_books(folder)["envelopes"]).numpy()
    pitch = features.pitch_codes(spoken.hz, spoken.phase)
    return np.concatenate([codes[:, :1], pitch[:, None], codes[:, 1:]], 1).T.astype(np.int16)


def semantic_tokens(job: tuple[Path, str]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """(text ids, units) of one sentence."""
    folder, text = job
    units = Units(_load_books(folder)["units"])
    return np.array(tokens.text_ids(text), np.int16), units(_phonemes(text))


def acoustic_tokens(
    job: tuple[Path, str, int],
) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]:
    """(units [S], codes [8, F], samples int16 [F * HOP]) of one sentence of any speaker."""
    folder, text, speaker = job
    spoken = the_teacher().say(text, SPEAKERS[speaker])
    units = Units(_load_books(folder)["units"])(spoken.phonemes)
    wave = np.round(spoken.samples * 32767).astype(np.int16)
    return units, codes_of(folder, spoken), wave


_PHONEMES_A_WORD = 12


def make_words(folder: Path) -> None:
    """Write how the teacher says each token of the text, and which phoneme is between words."""
    if (folder / "words.pt").exists():
        return
    teacher = the_teacher()
    said = torch.full((len(tokens.VOCABULARY), _PHONEMES_A_WORD), -1)
    for row, token in zip(said, tokens.VOCABULARY, strict=True):
        if token.isalpha() and len(token) > 1:
            frames = teacher.phonemes(token)
            own = frames[np.append(True, frames[1:] != frames[:-1])]
            own = own[own != 0][:_PHONEMES_A_WORD]
            row[: len(own)] = torch.from_numpy(own)
    torch.save({"said": said, "space": torch.tensor(teacher.space)}, folder / "words.pt")


def make_data(folder: Path, *, seed: int, n_texts: int, n_acoustic: int, processes: int) -> None:
    """Write all that is not there yet: units of `n_texts` sentences, codes of `n_acoustic`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = make_texts(seed)[:n_texts]
    with Pool(processes) as pool:
        if not (folder / "books.pt").exists():
            make_books(folder, texts, pool, seed)
        make_words(folder)
        make_semantic(folder, held_out()[0], pool, -1)
        shards = [texts[start : start + _SHARD] for start in range(0, len(texts), _SHARD)]
        for i, shard in enumerate(shards):
            if i == _SHARDS_FIRST:
                make_acoustic(folder, texts, pool, seed, n_acoustic)
            make_semantic(folder, shard, pool, i)


def make_semantic(folder: Path, texts: list[str], pool: Any, i: int) -> None:
    """One shard, number -1 the held-out sentences."""
    name = "held_out" if i < 0 else f"{i:02}"
    if (folder / f"units-{name}.npy").exists():
        return
    jobs = [(folder, text) for text in texts]
    made = list(tqdm(pool.imap(semantic_tokens, jobs, 32), total=len(jobs), desc=f"units {name}"))
    Ragged.of([ids for ids, _ in made]).save(folder / f"texts-{name}.npy")
    Ragged.of([units for _, units in made]).save(folder / f"units-{name}.npy")


def make_acoustic(folder: Path, texts: list[str], pool: Any, seed: int, n: int) -> None:
    """Sentences of all speakers: units, codes, and waves of the first; speaker.npy says whose."""
    if (folder / "waves.npy").exists():
        return
    rng = random.Random(seed)
    speakers = [
        0 if rng.random() < _OF_THE_FIRST else rng.randrange(1, len(SPEAKERS)) for _ in range(n)
    ]
    jobs = [(folder, texts[i % len(texts)], speaker) for i, speaker in enumerate(speakers)]
    units: list[NDArray[np.int16]] = []
    codes: list[NDArray[np.int16]] = []
    waves: list[NDArray[np.int16]] = []
    for own, coded, wave in tqdm(pool.imap(acoustic_tokens, jobs, 32), total=n, desc="codes"):
        units.append(own)
        codes.append(coded)
        if len(waves) < _WAVES:
            waves.append(wave)
    np.save(folder / "speakers.npy", np.array(speakers))
    for name, column in (("spoken_units", units), ("codes", codes), ("waves", waves)):
        Ragged.of(column).save(folder / f"{name}.npy")


def sizes_of(folder: Path) -> dict[str, int]:
    """How many sentences are learned from, and how many of them are spoken."""
    return {
        "texts": sum(len(texts) for texts, _ in semantic_shards(folder)),
        "spoken": len(Ragged.load(folder / "codes.npy")),
    }


def semantic_shards(folder: Path) -> Iterator[tuple[Ragged, Ragged]]:
    """(texts, units) of every shard that is there already."""
    for path in sorted(folder.glob("units-[0-9][0-9].npy")):
        yield Ragged.load(path.with_name(path.name.replace("units", "texts"))), Ragged.load(path)
