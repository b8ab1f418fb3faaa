"""Normalise and tokenise text, and split what is too long for one utterance."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import regex

from bark_fast.checkpoint.layout import TOKENIZER_FILES
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.unreadable import in_one_line, what_it_is
from bark_fast.errors import CheckpointError, InputError, warn

_TITLE_END = re.compile(r"\b(Ms|Mx)\. ?$")

_NO_TOKENIZER = f"no tokenizer found ({' or '.join(TOKENIZER_FILES)})"
# The files that a tokenizer may have beside one of these.
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# Speaking rates for the estimate below, in characters a second: on the fast side of slow speech, so
# that a piece that is estimated to fit does. An ideograph or a syllable sign takes about 1/4.5 s, a
# letter about 1/14 s.
_WIDE_PER_S = 4.5
_NARROW_PER_S = 14.0
# A text of which so much is unknown is warned of; so many of its characters are named.
_MOSTLY, _MOST_NAMED = 0.5, 8
# Hangul syllables and the scripts that Unicode calls wide (CJK, kana).
_WIDE = ("W", "F")


def normalise(text: str) -> str:
    """Return `text` with every run of white space as one space, and none at the ends.

    Raises:
        InputError: it is not a string of valid Unicode, or nothing is left.
    """
    if not isinstance(text, str):
        raise InputError(f"text must be a string, got {type(text).__name__}")
    check_unicode(text)
    clean = " ".join(text.split())
    if not clean:
        raise InputError(f"text must not be empty, got {text!r}")
    return clean


def tokenizer_folder(source: Source) -> Path:
    """Return the folder of the tokenizer's files, of which transformers takes many a wrong one.

    Raises:
        CheckpointError: there are none, or one is no tokenizer's.
    """
    found = [path for file in TOKENIZER_FILES if (path := source.find(file))]
    if not found:
        # transformers would make an empty tokenizer or ask the network.
        raise source.missing(_NO_TOKENIZER)
    for path in [*found, *filter(None, map(source.find, _TOKENIZER_SETTINGS))]:
        if (instead := what_it_is(path)) is not None:
            raise CheckpointError(f"{path}: is no tokenizer's: {instead}")
        if path.suffix == ".json":
            source.read_json(path.name)
    return found[0].parent


def check_tokenizer(tokenizer: Any, where: str) -> None:
    """Check that transformers has read a tokenizer, and not made one up.

    Where files are missing or empty it makes one that knows its special tokens and no word.

    Args:
        where: the checkpoint's name in error messages.

    Raises:
        CheckpointError: there is no word in it.
    """
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise CheckpointError(f"{where}: {_NO_TOKENIZER} with words in it")


def unreadable_tokenizer(where: str, error: Exception) -> CheckpointError:
    """Return the error for a tokenizer that transformers could not load."""
    return CheckpointError(f"{where}: cannot load its tokenizer: {in_one_line(error)}")


def check_unicode(text: str, name: str = "text") -> None:
    """Check that a string can be encoded, which half of a surrogate pair cannot.

    Raises:
        InputError: it cannot.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} must be valid Unicode: {error}") from error


class Tokenizer:
    """The checkpoint's own tokenizer (transformers' AutoTokenizer), without special tokens."""

    def __init__(self, source: Source, *, limit: int, max_tokens: int) -> None:
        """Load the tokenizer.

        Args:
            limit: ids must be below it.
            max_tokens: what the semantic prompt holds.

        Raises:
            CheckpointError: there is no tokenizer, or it cannot be loaded.
        """
        from transformers import AutoTokenizer

        # All that the source gives lies in one folder, the hub's files in a snapshot of its cache:
        # transformers need not ask the network once more, for files that others may have changed.
        folder = tokenizer_folder(source)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # many kinds, by tokenizer and by version
            raise unreadable_tokenizer(source.name, error) from error
        check_tokenizer(self._tokenizer, source.name)
        # `encode` cuts a text that is too long, and warns with the true numbers.
        self._tokenizer.model_max_length = int(1e30)
        self._where = source.name
        self._unknown: int | None = self._tokenizer.unk_token_id
        self._limit = limit
        self.max_tokens = max_tokens

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return len(self.ids(text))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of normalised text, at most `max_tokens`.

        Warn if some were cut, or if most of the text is unknown to the tokenizer.

        Raises:
            InputError: nothing in it is a token.
            CheckpointError: the model has no such token.
        """
        ids = self.ids(text)
        if not ids:
            raise InputError(f"text must hold something the tokenizer knows, got {text!r}")
        if len(ids) > self.max_tokens:
            warn(
                f"text is {len(ids)} tokens long and the last {len(ids) - self.max_tokens} were "
                f"cut: Bark reads {self.max_tokens} at a time (Bark.stream splits long text)",
                stacklevel=3,
            )
        self._warn_of_unknown(text, ids)
        return ids[: self.max_tokens]

    def _warn_of_unknown(self, text: str, ids: list[int]) -> None:
        """Warn if at least half of the tokens say only that something unknown stands there."""
        if self._unknown is None or not _is_sayable(text):
            return
        n_unknown = ids.count(self._unknown)
        if n_unknown < _MOSTLY * len(ids):
            return
        unknown = [c for c in dict.fromkeys(text) if self._unknown in self.ids(c)]
        # A word may be unknown though its letters are not: one that is much too long, say.
        names = ", ".join(map(repr, unknown[:_MOST_NAMED])) or "whole words"
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        warn(
            f"this checkpoint's tokenizer knows too little of the text, which will not be heard: "
            f"{n_unknown} of {len(ids)} tokens are unknown ({names}{more})",
            stacklevel=4,
        )

    def ids(self, text: str) -> list[int]:
        """Return the token ids of `text`, however many.

        Raises:
            CheckpointError: the model has no such token.
        """
        try:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        except Exception as error:  # a token that it needs is not in its vocabulary, say
            raise CheckpointError(
                f"{self._where}: its tokenizer fails on {text!r}: {in_one_line(error)}"
            ) from error
        if ids and max(ids) >= self._limit:
            raise CheckpointError(
                f"the tokenizer gives id {max(ids)}, but the semantic model has room for "
                f"{self._limit} text tokens"
            )
        return ids


def warn_of_silence(text: str, n_made: int, *, stacklevel: int = 3) -> None:
    """Warn if a text of punctuation only gave nothing, which is no error.

    Args:
        text: normalised; "" for semantic tokens that were given.
        n_made: the samples, or the semantic tokens, that it gave.
    """
    if text and not n_made and not _is_sayable(text):
        warn(
            f"text {text!r} holds punctuation only, and the model says nothing for it: its "
            "speech has no samples",
            stacklevel=stacklevel,
        )


def _is_sayable(text: str) -> bool:
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def estimate_duration_s(text: str) -> float:
    """Estimate how long `text` takes to say, in seconds; rather too long than too short."""
    wide = sum(
        unicodedata.east_asian_width(c) in _WIDE and unicodedata.category(c)[0] == "L" for c in text
    )
    return wide / _WIDE_PER_S + (len(text) - wide) / _NARROW_PER_S


def split_text(
    text: str,
    *,
    max_tokens: int,
    max_duration_s: float,
    count_tokens: Callable[[str], int],
    language: str = "en",
    spell: Callable[[str], str] | None = None,
) -> list[str]:
    """Split `text` into sentences, and those that are too long for one utterance further.

    The end of a line is the end of a sentence: headings, verse and lists have no full stops.
    Sentence ends come from sentencex (Wikimedia), which knows the marks of most scripts whatever
    `language` says; the language adds its abbreviations. A sentence over `max_tokens` or
    `max_duration_s` (estimated) is split at clause marks, then between words, then anywhere. What
    follows a speaker's tag begins with the tag, up to the next one.

    Args:
        spell: writes numbers and the like in words, before what is too long is split.

    Raises:
        InputError: the text is empty or not a string.
    """

    def fits(piece: str) -> bool:
        return estimate_duration_s(piece) <= max_duration_s and count_tokens(piece) <= max_tokens

    whole = normalise(text)  # says what is wrong with it before any work
    sentences = list(_sentences(text, language))
    if spell is not None:
        whole = normalise(spell(whole)) if not sentences else whole
        sentences = [" ".join(spell(s).split()) for s in sentences]
    # "..." alone is a sentence to the splitter, but nothing to say.
    speakable = [s for s in sentences if _is_sayable(s)]
    return list(_split_by_speaker(speakable or [whole], fits))


def _sentences(text: str, language: str) -> Iterator[str]:
    """Yield the sentences of each line, with white space normalised."""
    from sentencex import segment

    for line in text.splitlines():
        for sentence in _join_titles(segment(language, line)):
            if clean := " ".join(sentence.split()):
                yield clean


def _split_by_speaker(sentences: Iterable[str], fits: Callable[[str], bool]) -> Iterator[str]:
    """Split sentences into pieces that fit, each with the tag of its speaker before it."""
    speaker, alone = "", ""
    for sentence in sentences:
        tags = [speaker, *_SPEAKER.findall(sentence)]
        longest = max(tags, key=len)
        # A tag that takes half of an utterance's room would leave none for the text.
        carried = bool(longest) and fits(f"{longest} {longest}")

        def fits_with_tag(piece: str, longest: str = longest, carried: bool = carried) -> bool:
            bare = not carried or _SPEAKER.match(piece)
            return fits(piece if bare else f"{longest} {piece}")

        for piece in _split_to_fit(sentence, fits_with_tag):
            if carried and piece in _SPEAKER.findall(piece):
                speaker = alone = piece  # for the piece that follows
                continue
            tagged = carried and speaker and not _SPEAKER.match(piece)
            yield f"{speaker} {piece}" if tagged else piece
            alone = ""
            speaker = (_SPEAKER.findall(piece) or [speaker])[-1]
    if alone:
        yield alone


def _join_titles(segments: list[str]) -> list[str]:
    """Join a segment that ends in a title that the splitter does not know with the next one."""
    joined: list[str] = []
    for segment in segments:
        if joined and _TITLE_END.search(joined[-1]):
            joined[-1] += segment
        else:
            joined.append(segment)
    return joined


def _split_to_fit(text: str, fits: Callable[[str], bool], level: int = 0) -> Iterator[str]:
    """Split `text` into pieces that fit: at clause ends, else between words, else anywhere."""
    if fits(text) or level == len(_SPLITTERS):
        yield text
        return
    current = ""
    for part in _SPLITTERS[level](text):
        if current and not fits((current + part).strip()):
            yield from _split_to_fit(current.strip(), fits, level + 1)
            current = ""
        current += part
    if current.strip():
        yield from _split_to_fit(current.strip(), fits, level + 1)


# Bark's tags for the one who speaks, at the beginning or after a space.
_SPEAKER = re.compile(r"(?<!\S)(?:\[(?:MAN|WOMAN)\]:?|(?:MAN|WOMAN)[:：])")
# A comma inside a number or a colon inside a time has no space behind it; CJK marks need none.
_CLAUSE_END = re.compile(r"(?<=[,;:،؛])(?=\s)|(?<=[、，；：—…])")
_WORD_END = re.compile(r"(?<=\s)")
_GRAPHEME = regex.compile(r"\X")  # a character as readers see it (Unicode annex 29)
_SPLITTERS: tuple[Callable[[str], list[str]], ...] = (
    _CLAUSE_END.split,
    _WORD_END.split,
    _GRAPHEME.findall,
)
