"""Measure how well words are understood, by pocketsphinx with a language model of such texts.

The recogniser's own language model expects whole sentences of newspapers and mishears most of
espeak-ng's short phrases; with one made from the training sentences its errors tell more of the
sound. Both sides of every comparison are heard by the same recogniser.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import resample_poly

from recipes.demo_voice.features import Array

_LEAST_COUNT = 15
_DISCOUNT = 0.7  # of every count (Ney, Essen and Kneser 1994)


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


class Recogniser:
    """pocketsphinx with the acoustic model that its package holds.

    Args:
        texts: what its language model (bigrams, absolute discounting) is made from.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        from pocketsphinx import Decoder

        known = Decoder(samprate=16_000, loglevel="FATAL", lm=None).lookup_word
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bigrams.arpa"
            self.vocabulary = _write_arpa(path, texts, known)
            self._decoder: Any = Decoder(samprate=16_000, loglevel="FATAL", lm=str(path))

    def knows(self, text: str) -> bool:
        """Return True if every word of the text can be recognised at all."""
        return all(word in self.vocabulary for word in words_of(text))

    def hear(self, samples: Array) -> list[str]:
        """The words in samples float32 [T] at 24 kHz."""
        quiet = np.zeros(4_000, np.float32)
        wave = np.concatenate([quiet, resample_poly(samples, 2, 3), quiet])
        peak = max(float(np.abs(wave).max()), 1e-3)
        self._decoder.start_utt()
        self._decoder.process_raw(
            np.round(wave / peak * 20_000).astype(np.int16).tobytes(), full_utt=True
        )
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return [] if found is None else words_of(found.hypstr)

    def error_rate(self, sentences: Sequence[str], waves: Sequence[Array]) -> float:
        """Word error rate over all sentences."""
        errors = sum(
            word_errors(words_of(text), self.hear(wave))
            for text, wave in zip(sentences, waves, strict=True)
        )
        return errors / sum(len(words_of(text)) for text in sentences)


def _write_arpa(path: Path, texts: Iterable[str], known: Any) -> set[str]:
    """A bigram model in ARPA's format; returns its words."""
    lines = [words_of(text) for text in texts]
    counts = Counter(word for line in lines for word in line)
    vocabulary = {w for w, n in counts.items() if n >= _LEAST_COUNT and known(w)}
    ones: Counter[str] = Counter()
    twos: dict[str, Counter[str]] = {}
    for line in lines:
        if not all(word in vocabulary for word in line):
            continue
        marked = ["<s>", *line, "</s>"]
        ones.update(marked[1:])
        for a, b in pairwise(marked):
            twos.setdefault(a, Counter())[b] += 1
    total = sum(ones.values())
    single = {w: (ones[w] + 1) / (total + len(vocabulary) + 1) for w in [*vocabulary, "</s>"]}
    one_lines, two_lines = [], []
    for word in ["<s>", *sorted(single)]:
        after = twos.get(word)
        rest = 1.0
        if after:
            n = sum(after.values())
            # What is taken from seen pairs goes to all words that were not seen here.
            unseen = 1 - sum(single[b] for b in after)
            rest = _DISCOUNT * len(after) / n / max(unseen, 1e-6)
            for b, count in sorted(after.items()):
                two_lines.append(f"{math.log10((count - _DISCOUNT) / n):.4f} {word} {b}")
        p = -99.0 if word == "<s>" else math.log10(single[word])
        one_lines.append(f"{p:.4f} {word} {math.log10(rest):.4f}")
    path.write_text(
        f"\\data\\\nngram 1={len(one_lines)}\nngram 2={len(two_lines)}\n\n\\1-grams:\n"
        + "\n".join(one_lines)
        + "\n\n\\2-grams:\n"
        + "\n".join(two_lines)
        + "\n\n\\end\\\n"
    )
    return vocabulary
