"""What has been done in an output folder: found again after any end, and written down once.

The folder holds the audio files; `manifest-00000.jsonl`, ..., each for so many rows of the input in
its order; and `.bark-fast/`, in which a journal says what is done until its manifest is written.
An audio file appears by renaming, under a name with a hash of all that decides about its content,
and its line in the journal comes before its name: a row is done if it has both.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from bark_fast.errors import InputError
from bark_fast.files import write_all
from bark_fast.validation import check_integer

PART_ROWS = 10_000
KINDS = ("jsonl", "parquet")  # of manifests
_HIDDEN = ".bark-fast"
_DIGITS = "[0-9]" * 5


@dataclass(frozen=True)
class Entry:
    """A line of the manifest: what became of a row.

    Attributes:
        row: its number in the input, from 0.
        id: its own; "" if it has none.
        path: of the audio, in the folder; None if there is none.
        seconds: of audio.
        seed, voice: it was said with.
        sha256: of the audio file.
        error: why there is no audio.
        key: a hash of everything that decides about the audio.
    """

    row: int
    id: str
    path: str | None
    seconds: float | None
    seed: int | None
    voice: str | None
    sha256: str | None
    error: str | None
    key: str


class Journal:
    """What has been done in a folder, for one that does more. Any thread may use it.

    Args:
        out: the folder.
        label: of the shard that it belongs to, see `label_of`.
        worker: tells this one from others of the same shard, with a dot at its end; "" is the
            shard's own.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, out: Path, label: str, worker: str = "") -> None:
        self.out = out
        self._hidden = out / _HIDDEN
        self._label = label
        self._worker = worker
        self._noting = threading.Lock()
        self._known: dict[str, Entry] = {}
        self._journal: IO[bytes] | None = None  # there is none before there is something to note
        self._hidden.mkdir(parents=True, exist_ok=True)
        self.read()

    def known(self, key: str) -> Entry | None:
        """Return what became of a row, as far as that is written down, by its key."""
        return self._known.get(key)

    def has(self, path: str) -> bool:
        """Return True if there is such an audio file."""
        return (self.out / path).exists()

    def note(self, entry: Entry) -> None:
        """Write down what became of a row; it is there whatever comes.

        Raises:
            OSError: it cannot be written.
        """
        self._note_all([entry])

    def commit(self, entry: Entry, content: bytes) -> None:
        """Write the audio of a row, and down that it is there.

        The entry is written down before the file has its name: an entry without a file is nothing.

        Raises:
            OSError: it cannot be written.
        """
        assert entry.path is not None
        partial = self._partial(entry.path)
        with _whole(partial) as file:
            file.write(content)
        self.note(entry)
        os.replace(partial, self.out / entry.path)

    def close(self) -> None:
        """Close the file."""
        if self._journal is not None:
            self._journal.close()

    def read(self) -> None:
        """Read what has been written down, by whomever: other shards and workers too."""
        for path in [*self._manifests("*"), *sorted(self._hidden.glob("journal*.*jsonl"))]:
            with contextlib.suppress(FileNotFoundError):  # another shard has ended meanwhile
                for entry in _read_entries(path):
                    self._learn(entry)

    def _manifests(self, label: str) -> list[Path]:
        """Return the parts of manifests; an id may begin like one, but no audio ends so."""
        return [
            path
            for kind in KINDS
            for path in sorted(self.out.glob(f"manifest{label}-{_DIGITS}.{kind}"))
        ]

    def _learn(self, entry: Entry) -> None:
        """Remember an entry, but no failure of a row that another entry has audio of."""
        known = self._known.get(entry.key)
        if entry.key and (entry.path is not None or known is None or known.path is None):
            self._known[entry.key] = entry

    def _note_all(self, entries: Sequence[Entry]) -> None:
        lines = b"".join(json.dumps(asdict(entry)).encode() + b"\n" for entry in entries)
        with self._noting:
            for entry in entries:
                self._learn(entry)
            if self._journal is None:
                self._journal = _open_journal(
                    self._hidden / f"journal{self._label}.{self._worker}jsonl"
                )
            write_all(self._journal, lines)
        os.fsync(self._journal.fileno())

    def _partial(self, name: str) -> Path:
        """Return where a file is written before it has its name."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self._hidden / f"partial{self._label}.{self._worker}{digest}"


class Ledger(Journal):
    """A folder for one run and shard, with its manifest.

    Args:
        out: the folder; it is made if it is not there.
        shard: (i, n), the i-th of n, from 0, which have the folder together.
        kind: of the manifest: "jsonl" or "parquet".

    Raises:
        InputError: an argument is wrong, the folder cannot be written, or another run has it.
    """

    def __init__(self, out: Path, *, shard: tuple[int, int] = (0, 1), kind: str = "jsonl") -> None:
        if kind not in KINDS:
            raise InputError(f"manifest must be one of {', '.join(KINDS)}, got {kind!r}")
        if kind == "parquet":
            _check_pyarrow()
        i, n = shard
        check_integer("shard[1]", n, "an integer >= 1", 1, 2**31)
        check_integer("shard[0]", i, f"from 0 to {n - 1}", 0, n - 1)
        self._kind = kind
        self._pattern = label_of(shard) or "*"
        self._part: list[Entry] = []
        self._n_parts = 0
        try:
            (out / _HIDDEN).mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(out, i, n)
            try:
                super().__init__(out, label_of(shard))
                for path in self._hidden.glob(f"partial{self._label}.*"):
                    path.unlink()
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise InputError(
                f"OUT must be a folder that can be written, got {str(out)!r}: {error.strerror}"
            ) from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._lock.close()  # which gives it back

    def add(self, entry: Entry) -> None:
        """Add the next row's entry to the manifest; rows come in the order of the input.

        Raises:
            OSError: it cannot be written.
        """
        self._part.append(entry)
        if len(self._part) == PART_ROWS:
            self._write_part()

    def finish(self) -> None:
        """Write the rest of the manifest, and end the journals, which it replaces.

        The run that has all rows takes the place of all shards that ever were.

        Raises:
            OSError: it cannot be written.
        """
        if self._part or not self._n_parts:
            self._write_part()
        mine = {self._part_path(i) for i in range(self._n_parts)}
        for path in self._manifests(self._pattern):
            if path not in mine:  # of an input that was longer, or a manifest of the other kind
                path.unlink()
        _sync_folder(self.out)  # before the journals go, all that they tell of has its name
        self.close()
        for kind in ("journal", "partial"):
            for path in self._hidden.glob(f"{kind}{self._pattern}.*"):
                path.unlink()

    def _write_part(self) -> None:
        path = self._part_path(self._n_parts)
        if path.exists():
            # Rows that were in this part and come later in this input stay known until then.
            keys = {entry.key for entry in self._part}
            displaced = [entry for entry in _read_entries(path) if entry.key not in keys]
            self._note_all([entry for entry in displaced if entry.key])
        partial = self._partial(path.name)
        with _whole(partial) as file:
            (_write_parquet if self._kind == "parquet" else _write_jsonl)(file, self._part)
        os.replace(partial, path)
        self._part = []
        self._n_parts += 1

    def _part_path(self, i: int) -> Path:
        return self.out / f"manifest{self._label}-{i:05d}.{self._kind}"


def label_of(shard: tuple[int, int]) -> str:
    """Return what the names of a shard's files have in them."""
    return f"-{shard[0]}-of-{shard[1]}" if shard[1] > 1 else ""


def _open_journal(path: Path) -> IO[bytes]:
    """Open a journal to add to it, without the half of a line that a sudden end left."""
    file = path.open("a+b", buffering=0)
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    return file


def _take_lock(out: Path, i: int, n: int) -> IO[bytes]:
    """Lock a folder for a shard; the end of the process gives it back."""
    hidden = out / _HIDDEN
    with (hidden / "lock").open("ab") as door:  # one at a time looks for others
        fcntl.flock(door, fcntl.LOCK_EX)
        for path in sorted(hidden.glob("*-of-*.lock")):
            if path.stem.rpartition("-")[2] != str(n):
                with path.open("ab") as other:  # shards of another number would have other rows
                    _lock(other, out)
                path.unlink()
        file = (hidden / f"{i}-of-{n}.lock").open("ab")
        try:
            _lock(file, out)
        except BaseException:
            file.close()
            raise
    return file


def _lock(file: IO[bytes], out: Path) -> None:
    """Lock a file until it is closed, which the end of the process does too."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"OUT must be a folder that no other run is writing to, got {str(out)!r}"
        ) from error


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is on the disk when the block ends, or not there if it raises."""
    try:
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Manifests ---------------------------------------------------------------------------------------


def _read_entries(path: Path) -> Iterator[Entry]:
    return (_read_parquet if path.suffix == ".parquet" else _read_jsonl)(path)


def _read_jsonl(path: Path) -> Iterator[Entry]:
    for line in path.read_bytes().split(b"\n"):
        try:
            yield Entry(**json.loads(line))
        except (ValueError, TypeError):
            continue  # the end of a journal that was being written


def _write_jsonl(file: IO[bytes], entries: Sequence[Entry]) -> None:
    for entry in entries:
        file.write(json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n")


def _check_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise InputError(
            "manifest must be \"jsonl\" without pyarrow (pip install 'bark-fast[bulk]'), got "
            "'parquet'"
        )


def manifest_schema() -> Any:
    """Return the types of the manifest's columns, of pyarrow."""
    import pyarrow

    kinds = {"int": pyarrow.int64(), "float": pyarrow.float64(), "str": pyarrow.string()}
    columns = []
    for f in fields(Entry):
        kind = str(f.type).removesuffix(" | None")
        columns.append((f.name, pyarrow.uint64() if f.name == "seed" else kinds[kind]))
    return pyarrow.schema(columns)


def _read_parquet(path: Path) -> Iterator[Entry]:
    _check_pyarrow()
    import pyarrow.parquet as parquet

    for values in parquet.read_table(path).to_pylist():
        yield Entry(**values)


def _write_parquet(file: IO[bytes], entries: Sequence[Entry]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.Table.from_pylist(
        [asdict(entry) for entry in entries], schema=manifest_schema()
    )
    parquet.write_table(table, file)
