"""Rows of texts: read from files, and checked one by one, so that a wrong one is only itself."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bark_fast.errors import InputError
from bark_fast.text import check_unicode
from bark_fast.types import GenerationParams
from bark_fast.validation import is_language

_PARAMS = frozenset(f.name for f in fields(GenerationParams))
FIELDS = frozenset({"id", "text", "voice", "language"}) | _PARAMS
"""The names that a row can have."""

ENDINGS = (".jsonl", ".csv", ".parquet")
_MAX_ID_BYTES = 200  # a file's name has 255, with a hash and an ending


@dataclass(frozen=True)
class Row:
    """A text to say.

    Attributes:
        id: names it and its file.
        text, voice, language: as in `Bark.stream`.
        params: with a seed.
    """

    id: str
    text: str
    voice: str | None
    language: str
    params: GenerationParams


@dataclass(frozen=True)
class Unreadable:
    """A row that is not even one: a line that is no JSON, say."""

    error: str


RawRow = Mapping[str, Any] | Unreadable


def check_row(raw: RawRow, *, seed: int, ignored: Collection[str] | None = ()) -> Row:
    """Return a row, checked as far as can be without the model.

    Args:
        raw: names and values; those that are None are as if they were not there.
        seed: of the run, from which a row without a seed takes its own, by its id.
        ignored: names that a row may have and that mean nothing; None is any.

    Raises:
        InputError: it is wrong.
    """
    if isinstance(raw, Unreadable):
        raise InputError(raw.error)
    values = {name: value for name, value in raw.items() if value is not None}
    if ignored is not None and (unknown := sorted(set(values) - FIELDS - set(ignored), key=str)):
        raise InputError(
            "a row must have no fields but id, text, voice, language and the names of "
            f"GenerationParams, got {unknown[0]!r}"
        )
    row_id = checked_id(values.get("id"))
    text = values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"text must be a string that is not empty, got {text!r}")
    check_unicode(text)
    voice = values.get("voice")
    if voice is not None and not isinstance(voice, str):
        raise InputError(f"voice must be a name or the path of an .npz file, got {voice!r}")
    language = values.get("language", "en")
    if not is_language(language):
        raise InputError(f'language must be a code such as "en", got {language!r}')
    given = {name: value for name, value in values.items() if name in _PARAMS}
    given.setdefault("seed", seed_of(row_id, seed))
    return Row(row_id, text, voice, language, GenerationParams(**given))


def checked_id(value: Any) -> str:
    """Return a row's id; whole numbers are as good as strings.

    Raises:
        InputError: no file could have that name.
    """
    row_id = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(row_id, str) or not row_id:
        raise InputError(f"id must be a string that is not empty, or an integer, got {value!r}")
    check_unicode(row_id, "id")
    if any(c in "/\\\0" or not c.isprintable() for c in row_id) or row_id.startswith("."):
        raise InputError(
            "id must name a file: without slashes or control characters, and no dot in front, got "
            f"{value!r}"
        )
    if len(row_id.encode()) > _MAX_ID_BYTES:
        raise InputError(f"id must have at most {_MAX_ID_BYTES} bytes, got {len(row_id.encode())}")
    return row_id


def seed_of(row_id: str, seed: int) -> int:
    """Return the seed of a row that has none: the same in every run of this seed."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


# Files -------------------------------------------------------------------------------------------


def read_rows(source: str | os.PathLike[str]) -> Iterator[RawRow]:
    """Read the rows of a file, or of all files of a folder in the order of their names.

    Args:
        source: ends in .jsonl, .csv (with a line of names) or .parquet (extra `bulk`); a folder of
            such; or "-", which is JSONL on standard input.

    Raises:
        InputError: there is no such file, or it is none of these; at once, not at the first row.
    """
    if source == "-":
        return _read_jsonl(getattr(sys.stdin, "buffer", io.BytesIO()))
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if not files:
            raise InputError(
                f"IN must hold files ending in {', '.join(ENDINGS)}, got {str(path)!r}"
            )
    else:
        files = [path]
    readers = [_reader(file) for file in files]
    return (row for read in readers for row in read())


def _reader(path: Path) -> Callable[[], Iterator[RawRow]]:
    """Return what reads a file, which has been seen to be there."""
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise InputError(f"IN must end in {', '.join(ENDINGS)} or be a folder, got {str(path)!r}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(
            f"IN must be a file that can be read, got {str(path)!r}: {error.strerror}"
        ) from error
    if kind == ".parquet":
        return _parquet_reader(path)
    if kind == ".csv":
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            _check_columns(path, next(csv.reader(text), []))
    read = _read_jsonl if kind == ".jsonl" else _read_csv

    def rows() -> Iterator[RawRow]:
        with path.open("rb") as file:
            yield from read(file)

    return rows


def _read_jsonl(lines: Iterable[bytes]) -> Iterator[RawRow]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Unreadable(f"line {number} must be JSON: {error}")
            continue
        if isinstance(row, dict):
            yield row
        else:
            yield Unreadable(f"line {number} must be a JSON object, got {type(row).__name__}")


def _read_csv(file: Any) -> Iterator[RawRow]:
    """Read a CSV file, whose values are all text; an empty one is none."""
    # Bytes that are no UTF-8 spoil their row alone: half of a surrogate pair is no Unicode.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text)
    while True:
        try:
            values = _next_of(reader)
        except csv.Error as error:
            yield Unreadable(f"line {reader.line_num} must be CSV: {error}")
            continue
        if values is None:
            return
        if None in values or None in values.values():
            n = len(reader.fieldnames or [])
            yield Unreadable(f"line {reader.line_num} must have {n} values")
        else:
            yield _typed(values)


def _next_of(reader: csv.DictReader[str]) -> dict[str, str] | None:
    """Return the next row, with values as long as they are: csv has one limit, for all readers."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _typed(values: Mapping[str, str]) -> RawRow:
    """Return a CSV row with numbers where GenerationParams takes them."""
    typed: dict[str, Any] = {}
    for name, value in values.items():
        typed[name] = value or None
        if not value or name not in _PARAMS:
            continue
        if name == "normalize_text":
            typed[name] = {"true": True, "false": False}.get(value.lower(), value)
            continue
        for kind in (int, float):
            try:
                typed[name] = kind(value)
                break
            except ValueError:
                continue
    return typed


def _parquet_reader(path: Path) -> Callable[[], Iterator[RawRow]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            f"IN must not end in .parquet without pyarrow (pip install 'bark-fast[bulk]'), got "
            f"{str(path)!r}"
        ) from error
    try:
        names = parquet.read_schema(path).names
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"IN must be a Parquet file, got {str(path)!r}: {error}") from error
    _check_columns(path, names)

    def rows() -> Iterator[RawRow]:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1024):
                    for i in range(batch.num_rows):
                        try:
                            yield batch.slice(i, 1).to_pylist()[0]
                        except (ValueError, OverflowError) as error:
                            # A string that is no UTF-8, or a date that Python has not.
                            yield Unreadable(f"a row's values must be readable: {error}")
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(
                f"IN must be a whole Parquet file, got {str(path)!r}: {error}"
            ) from error

    return rows


def _check_columns(path: Path, names: Collection[str]) -> None:
    if missing := {"id", "text"} - set(names):
        raise InputError(
            f"IN must have the columns id and text, got {str(path)!r} without {min(missing)}"
        )
