"""The demo voice's vocabulary: token ids of text, units and codes, and what they stand for.

Everything that Bark's generation_config.json says of ids is here, for training and for export.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

N_UNITS = 1200  # semantic tokens
CODEBOOK = 1024
N_CODEBOOKS, N_COARSE = 8, 2

# A BERT tokenizer's: the commonest words are whole, the others end in letters. The list is of the
# words that `texts.make_texts` uses most, written down so that a change of texts changes no token.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = string.ascii_lowercase + string.digits
_MARKS = string.punctuation
WORDS = tuple(Path(__file__).with_name("words.txt").read_text().split())
VOCABULARY = (*SPECIAL, *_LETTERS, *_MARKS, *(f"##{c}" for c in _LETTERS), *WORDS)
_ID = {token: i for i, token in enumerate(VOCABULARY)}
UNKNOWN = _ID["[UNK]"]
SPELLED = frozenset(_ID[f"##{c}"] for c in _LETTERS)  # letters within a word that is not whole
_WORD = re.compile(rf"[{_LETTERS}]+|\S")

END = N_UNITS  # ends the text, and pads the history
TEXT_OFFSET = N_UNITS + 1
TEXT_PAD = TEXT_OFFSET + len(VOCABULARY)
SEMANTIC_INFER = TEXT_PAD + 1
SEMANTIC_IDS = SEMANTIC_INFER + 1

COARSE_PAD = N_UNITS + N_COARSE * CODEBOOK
COARSE_INFER = COARSE_PAD + 1
COARSE_IDS = COARSE_INFER + 1

FINE_PAD = CODEBOOK
FINE_IDS = CODEBOOK + 8

# Shorter than Bark's 256, 256 + 630 and 1 024, because a prompt's pads cost as much as anything in
# it: a sentence may last 8 s.
PROMPT = 64  # positions of text and history in the semantic model
MAX_UNITS = 160
COARSE_PROMPT, COARSE_HISTORY, COARSE_STEP = 96, 160, 80
FINE_WINDOW, FINE_HISTORY = 256, 128

SEMANTIC_RATE_HZ, FRAME_RATE_HZ = 20, 40
COARSE_A_UNIT = N_COARSE * FRAME_RATE_HZ // SEMANTIC_RATE_HZ


def _pieces(word: str) -> list[int]:
    """WordPiece (Schuster and Nakajima 2012): the longest that fits, again and again."""
    if word[0] not in _LETTERS:
        return [_ID.get(word, UNKNOWN)]
    whole = next(n for n in range(len(word), 0, -1) if word[:n] in _ID)
    return [_ID[word[:whole]], *(_ID[f"##{c}"] for c in word[whole:])]


def text_ids(text: str) -> list[int]:
    """The ids that the tokenizer gives."""
    return [i for word in _WORD.findall(text.lower()) for i in _pieces(word)]


def semantic_prompt(ids: Sequence[int], history: Sequence[int]) -> tuple[list[int], list[int]]:
    """The two streams that are summed, [PROMPT] each: text, and the units before it."""
    text = [i + TEXT_OFFSET for i in ids[:PROMPT]]
    past = list(history[-PROMPT:])
    return (
        text + [TEXT_PAD] * (PROMPT - len(text)),
        past + [END] * (PROMPT - len(past)),
    )
