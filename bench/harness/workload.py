"""Texts of the benchmarks, and how a static batcher would arrange them."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bark_fast.checkpoint.random import PRESET_NAMES

SENTENCE = "Hello, my dog is cute."
_WORDS = ("the", "dog", "rain", "sings", "over", "a", "small", "red", "house", "and", "waits")
SHORTEST, LONGEST = 30, 200  # semantic tokens of mixed requests: 0.6 to 4 seconds


@dataclass(frozen=True)
class Utterance:
    """One request: a text, the name of a preset or None, and the semantic tokens it must make."""

    text: str
    voice: str | None
    n_tokens: int


def one_utterance(n_tokens: int, voice: str | None = None) -> list[Utterance]:
    """Return one request of exactly `n_tokens` semantic tokens."""
    return [Utterance(SENTENCE, voice, n_tokens)]


def mixed_utterances(
    n: int,
    *,
    n_voices: int = 2,
    shortest: int = SHORTEST,
    longest: int = LONGEST,
    seed: int = 0,
) -> list[Utterance]:
    """Return requests of random lengths and texts; voices take turns, the first is no voice."""
    rng = random.Random(seed)
    voices = [None, *PRESET_NAMES][:n_voices]
    return [
        Utterance(
            " ".join(rng.choices(_WORDS, k=rng.randint(3, 20))),
            voices[i % len(voices)],
            rng.randint(shortest, longest),
        )
        for i in range(n)
    ]


def workload(n: int, arguments: argparse.Namespace) -> list[Utterance]:
    """Return the requests of the workload with `n` of them, as a command's options say."""
    if n == 1:
        return one_utterance(arguments.semantic_tokens)
    return mixed_utterances(
        n,
        n_voices=arguments.voices,
        shortest=arguments.shortest,
        longest=arguments.longest,
        seed=arguments.seed,
    )


def plan_batches(utterances: Sequence[Utterance], batch_size: int) -> list[list[int]]:
    """Return the best static batches: indexes into `utterances`, at most `batch_size` a batch.

    A batch has one voice, and runs to the end of its longest request, so requests of a voice are
    sorted by length; what is left over makes the shortest batch. Short batches go first: more
    requests are done early, and the sum is the same.
    """
    batches = []
    for voice in dict.fromkeys(u.voice for u in utterances):
        same_voice = [i for i, u in enumerate(utterances) if u.voice == voice]
        same_voice.sort(key=lambda i: -utterances[i].n_tokens)
        batches += [same_voice[i : i + batch_size] for i in range(0, len(same_voice), batch_size)]
    return sorted(batches, key=lambda batch: max(utterances[i].n_tokens for i in batch))


def batch_sizes_to_try(utterances: Sequence[Utterance], sizes: Sequence[int]) -> list[int]:
    """Return those of `sizes` that make different batches, the largest first."""
    voices = [u.voice for u in utterances]
    largest = max(voices.count(voice) for voice in set(voices))
    return sorted({min(size, largest) for size in sizes}, reverse=True)
