"""Makes what is trained on: sentences, units and codes, and the waves that the codec learns from.

Semantic units come from one speaker's sound. Every other speaker's phonemes are laid over those of
the first, so the units of a sentence hold its words and none of the voice.
"""

from __future__ import annotations

import random
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
from recipes.demo_voice.espeak import SAMPLE_RATE_HZ, SPEAKERS, Espeak
from recipes.demo_voice.quantize import k_means, nearest, residual_codes, residual_k_means
from recipes.demo_voice.texts import make_texts

_FOR_BOOKS = 2_000  # sentences that units and codebooks are learned from
_SHARD = 4_000
_DIFFERENCE_WEIGHT, _LOUDNESS_WEIGHT = 0.7, 0.6


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


_espeak: Espeak | None = None  # one a process


def _speak(text: str, speaker: int) -> tuple[features.Array, list[float], list[bytes]]:
    global _espeak
    _espeak = _espeak or Espeak()
    torch.set_num_threads(1)
    samples, phonemes = _espeak.say(text, SPEAKERS[speaker])
    ends = len(samples) / SAMPLE_RATE_HZ
    times = [min(t, ends) for t, _ in phonemes]
    return samples, [0.0, *times, ends], [name for _, name in phonemes]


def units_features(text: str, speaker: int) -> tuple[features.Array, features.Array]:
    """(samples of `speaker`, features [S, D] of the first speaker at the same sounds)."""
    samples, times, names = _speak(text, speaker)
    n = int(len(samples) / SAMPLE_RATE_HZ * features.SEMANTIC_RATE_HZ)
    at = (np.arange(n) + 0.5) / features.SEMANTIC_RATE_HZ
    first = samples
    if speaker:
        first, first_times, first_names = _speak(text, 0)
        if names == first_names:
            at = np.interp(at, times, first_times)
        else:  # a stress that one voice has and the other has not
            at = at * (len(first) / max(1, len(samples)))
    return samples, features.semantic_features(first, at)


def acoustic_features(samples: features.Array) -> tuple[features.Array, NDArray[np.int64]]:
    """(envelopes [F, D], pitch codes [F])."""
    n_frames = len(samples) // features.HOP
    hz, phase = features.pitch(samples, n_frames)
    shape = features.envelope(samples, n_frames)
    shape[:, features.N_CEPSTRA :] *= _DIFFERENCE_WEIGHT
    shape[:, 0] *= _LOUDNESS_WEIGHT
    return shape, features.pitch_codes(hz, phase)


def _book_material(job: tuple[str, int]) -> tuple[features.Array, features.Array]:
    samples, units = units_features(*job)
    return units, acoustic_features(samples)[0]


def make_books(folder: Path, texts: list[str], pool: Any, seed: int) -> None:
    """Learn units [N_UNITS, D] and the codebooks of envelopes, [7, 1024, D]."""
    jobs = [(text, i % len(SPEAKERS)) for i, text in enumerate(texts[:_FOR_BOOKS])]
    units, shapes = zip(
        *tqdm(pool.imap(_book_material, jobs, 32), total=len(jobs), desc="codebooks"),
        strict=True,
    )
    torch.set_num_threads(2)
    unit_points = torch.from_numpy(np.concatenate(units))
    shape_points = torch.from_numpy(np.concatenate(shapes))
    books = {
        "units": k_means(unit_points, tokens.N_UNITS, seed=seed),
        "envelopes": residual_k_means(
            shape_points, tokens.CODEBOOK, tokens.N_CODEBOOKS - 1, seed=seed
        ),
        "mean": shape_points.mean(0),
    }
    torch.save(books, folder / "books.pt")


_books: dict[str, Tensor] | None = None


def _load_books(folder: Path) -> dict[str, Tensor]:
    global _books
    if _books is None:
        _books = torch.load(folder / "books.pt", weights_only=True)
    return _books


def semantic_tokens(job: tuple[Path, str]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """(text ids, units) of one sentence of the first speaker."""
    folder, text = job
    _, points = units_features(text, 0)
    units = nearest(torch.from_numpy(points), _load_books(folder)["units"])
    return np.array(tokens.text_ids(text), np.int16), units.numpy().astype(np.int16)


def codes_of(folder: Path, samples: features.Array) -> NDArray[np.int16]:
    """The codec's encoder: codes [8, F]; the second codebook holds pitch and phase."""
    shape, pitch = acoustic_features(samples)
    codes = residual_codes(torch.from_numpy(shape), _load_books(folder)["envelopes"]).numpy()
    return np.concatenate([codes[:, :1], pitch[:, None], codes[:, 1:]], 1).T.astype(np.int16)


def acoustic_tokens(
    job: tuple[Path, str, int],
) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]:
    """(units [S], codes [8, F], samples int16 [F * HOP]) of one sentence of any speaker."""
    folder, text, speaker = job
    samples, points = units_features(text, speaker)
    units = nearest(torch.from_numpy(points), _load_books(folder)["units"])
    codes = codes_of(folder, samples)
    whole = samples[: codes.shape[1] * features.HOP]
    return (
        units.numpy().astype(np.int16),
        codes,
        np.round(whole.clip(-1, 1) * 32767).astype(np.int16),
    )


def make_data(folder: Path, *, seed: int, n_acoustic: int, processes: int) -> None:
    """Write all that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, held_out = make_texts(seed)
    (folder / "held_out.txt").write_text("\n".join(held_out) + "\n")
    with Pool(processes) as pool:
        if not (folder / "books.pt").exists():
            make_books(folder, texts, pool, seed)
        make_semantic(folder, texts[:_SHARD], pool, 0)
        make_acoustic(folder, texts, pool, seed, n_acoustic)
        for i, start in enumerate(range(_SHARD, len(texts), _SHARD), 1):
            make_semantic(folder, texts[start : start + _SHARD], pool, i)
        make_semantic(folder, held_out, pool, -1)


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
    """Sentences of all speakers: units, codes, waves; speaker.npy says whose."""
    if (folder / "waves.npy").exists():
        return
    rng = random.Random(seed)
    speakers = [rng.randrange(len(SPEAKERS)) for _ in range(n)]
    jobs = [(folder, texts[i % len(texts)], speaker) for i, speaker in enumerate(speakers)]
    made = list(tqdm(pool.imap(acoustic_tokens, jobs, 32), total=n, desc="codes"))
    np.save(folder / "speakers.npy", np.array(speakers))
    for name, column in zip(
        ("spoken_units", "codes", "waves"), zip(*made, strict=True), strict=True
    ):
        Ragged.of(list(column)).save(folder / f"{name}.npy")


def semantic_shards(folder: Path) -> Iterator[tuple[Ragged, Ragged]]:
    """(texts, units) of every shard that is there already."""
    for path in sorted(folder.glob("units-[0-9][0-9].npy")):
        yield Ragged.load(path.with_name(path.name.replace("units", "texts"))), Ragged.load(path)
