"""Texts that the demo voice is trained to say: everyday sentences of a grammar, numbers, WordNet's
example phrases, and words that nothing else has.

WordNet's licence lets anyone use, copy and modify it (Debian's package wordnet-base).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
_HERE = Path(__file__).parent
_MOST_LETTERS, _MOST_WORDS = 90, 16
_EXAMPLE = re.compile(r'"([^"]+)"')
_SENTENCE = re.compile(r"[A-Za-z][A-Za-z ,;'.!?-]*")
_SLOT = re.compile(r"\{(a )?(\w+)\}")


def held_out() -> tuple[list[str], list[str]]:
    """(everyday sentences, sentences with digits and names): never trained on."""
    everyday, digits = (
        (_HERE / name).read_text().splitlines() for name in ("everyday.txt", "digits.txt")
    )
    return everyday, digits


class Grammar:
    """A context-free grammar with equally likely choices, and numbers that it makes up."""

    def __init__(self, text: str) -> None:
        self._choices: dict[str, list[str]] = {}
        for line in text.splitlines():
            name, found, choices = line.partition(":")
            if found and not line.startswith("#"):
                self._choices[name] = [choice.strip() for choice in choices.split(" | ")]
        self._made_up = {
            "number_digits": lambda rng: str(rng.randrange(rng.choice([10, 32, 100]))),
            "number_any": _number,
            "clock_digits": lambda rng: f"{rng.randint(1, 12)}:{rng.randrange(0, 60):02}",
            "day_digits": lambda rng: str(rng.randint(1, 31)),
            "year_digits": lambda rng: str(rng.choice([rng.randint(1900, 2030)] * 3 + [1066])),
            "percent": lambda rng: f"{rng.randint(1, 100)}%",
            "money": _money,
            "phone": _phone,
        }

    def make(self, rng: random.Random, name: str = "sentence") -> str:
        text = self._expanded(name, rng, 0)
        return text[0].upper() + text[1:]

    def _expanded(self, name: str, rng: random.Random, depth: int) -> str:
        if name in self._made_up:
            return self._made_up[name](rng)
        choices = self._choices[name]
        choice = rng.choice(choices)
        while depth > 6 and choice.count("{statement}"):
            choice = rng.choice(choices)

        def filled(match: re.Match[str]) -> str:
            text = self._expanded(match[2], rng, depth + 1)
            if match[1] is None:
                return text
            return ("an " if text[0].lower() in "aeiou" else "a ") + text

        return _SLOT.sub(filled, choice)


def _number(rng: random.Random) -> str:
    number = rng.randrange(rng.choice([20, 100, 1_000, 10_000]))
    if rng.random() < 0.3:
        return spell(number)
    return f"{number:,}" if rng.random() < 0.3 else str(number)


def _money(rng: random.Random) -> str:
    whole = rng.randrange(1, rng.choice([20, 100, 2000]))
    cents = f".{rng.randrange(100):02}" if whole < 100 and rng.random() < 0.3 else ""
    return f"${whole:,}{cents}"


def _phone(rng: random.Random) -> str:
    digits = "".join(rng.choice("0123456789") for _ in range(7))
    return f"{digits[:3]} {digits[3:]}"


# fmt: off
_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]
# fmt: on
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


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


def examples() -> list[str]:
    """WordNet's, of 2 words and more."""
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{part}").read_text(errors="replace").splitlines():
            for example in _EXAMPLE.findall(line.partition("|")[2]):
                text = " ".join(example.split()).strip(" -;,")
                if _SENTENCE.fullmatch(text) and 2 <= len(text.split()) <= _MOST_WORDS:
                    found[text[0].upper() + text[1:]] = None
    return list(found)


def words_by_use() -> list[str]:
    """WordNet's single words, those first that its tagged texts use most."""
    uses: Counter[str] = Counter()
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        uses[key.partition("%")[0]] += int(count)
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"index.{part}").read_text().splitlines():
            if not line.startswith(" "):
                uses[line.partition(" ")[0]] += 0
    return [word for word, _ in uses.most_common() if re.fullmatch(r"[a-z]{2,14}", word)]


def _punctuated(text: str, rng: random.Random) -> str:
    return text if text[-1] in ".!?" else text + rng.choices(".!?", [8, 1, 1])[0]


def _of_words(words: list[str], rng: random.Random) -> str:
    """A few words in a row: what the letters of a word sound like needs no grammar."""
    picked = [words[int(len(words) * rng.random() ** 3)] for _ in range(rng.randint(2, 7))]
    if rng.random() < 0.4:
        picked = [f"{rng.choice(['the', 'a', 'my', 'some', 'to', 'of'])} {w}" for w in picked[:4]]
    joint = rng.choice([" ", " ", " ", ", ", " and "])
    text = joint.join(picked)
    return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Mixture:
    """How many sentences of each kind; WordNet's examples are all taken."""

    grammar: int = 90_000
    words: int = 30_000


def make_texts(seed: int, mixture: Mixture = Mixture()) -> list[str]:
    """Sentences in random order, none of them held out."""
    rng = random.Random(seed)
    grammar = Grammar((_HERE / "grammar.txt").read_text())
    words = words_by_use()
    found = [_punctuated(text, rng) for text in examples()]
    while len(found) < mixture.grammar + mixture.words:
        if rng.random() < mixture.words / (mixture.grammar + mixture.words):
            found.append(_punctuated(_of_words(words, rng), rng))
        else:
            found.append(grammar.make(rng))
    unseen = {plain(text) for part in held_out() for text in part}
    texts = [
        text
        for text in dict.fromkeys(found)
        if len(text) <= _MOST_LETTERS
        and len(text.split()) <= _MOST_WORDS
        and plain(text) not in unseen
    ]
    rng.shuffle(texts)
    return texts


def plain(text: str) -> str:
    """What two sentences are compared by: letters and digits."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
