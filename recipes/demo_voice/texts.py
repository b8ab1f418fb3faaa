"""Texts that the demo voice is trained to say: WordNet's phrases, numbers, and single words.

WordNet's licence lets anyone use, copy and modify it (Debian's package wordnet-base).
"""

from __future__ import annotations

import random
import re
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
N_HELD_OUT = 400
_SENTENCE = re.compile(r"[A-Za-z][A-Za-z ,;'.!?-]*")
_EXAMPLE = re.compile(r'"([^"]+)"')
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NAMED = (
    "Hello, my dog is cute.",
    "Hello, how are you today?",
    "Hello world.",
    "Good morning, my name is Bark.",
    "This is a test of the demo voice.",
    "Nice to meet you.",
    "Thank you very much.",
    "See you tomorrow.",
    "The weather is nice today.",
    "The quick brown fox jumps over the lazy dog.",
)


def spell(number: int) -> str:
    """A number below a million in words."""
    if number >= 1000:
        rest = f" {spell(number % 1000)}" if number % 1000 else ""
        return f"{spell(number // 1000)} thousand{rest}"
    if number >= 100:
        rest = f" and {spell(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100]} hundred{rest}"
    if number >= 20:
        rest = f" {_ONES[number % 10]}" if number % 10 else ""
        return f"{_TENS[number // 10 - 2]}{rest}"
    return _ONES[number]


def _examples() -> list[str]:
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{part}").read_text(errors="replace").splitlines():
            for example in _EXAMPLE.findall(line.partition("|")[2]):
                text = " ".join(example.split()).strip(" -;,")
                if _SENTENCE.fullmatch(text) and 1 <= len(text.split()) <= 12:
                    found[text[0].upper() + text[1:]] = None
    return list(found)


def _punctuated(text: str, rng: random.Random) -> str:
    return text if text[-1] in ".!?" else text + rng.choices(".!?", [8, 1, 1])[0]


def _made_up(words: list[str], rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        number = rng.choice([rng.randrange(20), rng.randrange(100), rng.randrange(10_000)])
        said = str(number) if number < 100 and rng.random() < 0.4 else spell(number)
        noun = rng.choice(words)
        return rng.choice(
            [
                f"The number is {said}",
                f"{said} {noun}".capitalize(),
                f"I have {said} of them",
                f"It costs {said} dollars",
            ]
        )
    picked = rng.sample(words, rng.randint(1, 5))
    if kind < 0.5:
        picked = [f"the {word}" for word in picked[:3]]
    joint = rng.choice([" ", " ", ", ", " and "])
    return joint.join(picked).capitalize()


def make_texts(seed: int, n_made_up: int = 16_000) -> tuple[list[str], list[str]]:
    """(to train on, held out): shuffled; no held-out sentence is among the others."""
    rng = random.Random(seed)
    examples = _examples()
    rng.shuffle(examples)
    held_out = [_punctuated(t, rng) for t in examples[:N_HELD_OUT]]
    rest = examples[N_HELD_OUT:]
    counts: dict[str, int] = {}
    for text in rest:
        for word in re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()):
            counts[word] = counts.get(word, 0) + 1
    words = [word for word, n in counts.items() if n >= 2 and len(word) > 1]
    made_up = [_made_up(words, rng) for _ in range(n_made_up)]
    texts = [_punctuated(t, rng) for t in [*rest, *made_up]] + list(_NAMED) * 4
    unseen = set(held_out)
    texts = [t for t in texts if t not in unseen]
    rng.shuffle(texts)
    return texts, held_out
