"""The demo voice's vocabulary: token ids of text, units and codes, and what they stand for.

Everything that Bark's generation_config.json says of ids is here, for training and for export.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

N_UNITS = 300  # semantic tokens
CODEBOOK = 1024
N_CODEBOOKS, N_COARSE = 8, 2

# Text is spelled by a BERT tokenizer: a word's first character, then the others with ##.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = string.ascii_lowercase + string.digits
_MARKS = ".,!?'-;:"
VOCABULARY = (*SPECIAL, *_LETTERS, *_MARKS, *(f"##{c}" for c in _LETTERS))
_ID = {token: i for i, token in enumerate(VOCABULARY)}
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

# Shorter than Bark's 256, 256 + 630 and 1 024: a prompt's pads cost as much as anything in it, and
# the demo voice says sentences of 12 words.
PROMPT = 96  # positions of text and history in the semantic model
MAX_UNITS = 384
COARSE_PROMPT, COARSE_HISTORY, COARSE_STEP = 128, 240, 60
FINE_WINDOW, FINE_HISTORY = 512, 256


def text_ids(text: str) -> list[int]:
    """The ids that the tokenizer gives."""
    ids: list[int] = []
    for word in _WORD.findall(text.lower()):
        ids.append(_ID.get(word[0], _ID["[UNK]"]))
        ids += [_ID[f"##{c}"] for c in word[1:]]
    return ids


def semantic_prompt(ids: Sequence[int], history: Sequence[int]) -> tuple[list[int], list[int]]:
    """The two streams that are summed, [PROMPT] each: text, and the units before it."""
    text = [i + TEXT_OFFSET for i in ids[:PROMPT]]
    past = list(history[-PROMPT:])
    return (
        text + [TEXT_PAD] * (PROMPT - len(text)),
        past + [END] * (PROMPT - len(past)),
    )
