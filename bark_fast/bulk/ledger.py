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
from pathlib import Path
from typing import IO, Any

from bark_fast.errors import InputError

PART_ROWS = 10_000
_HIDDEN = ".bark-fast"


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


class Ledger:
    """An output folder, for one process at a time and shard.

    Args:
        out: the folder; it is made if it is not there.
        shard: (i, n), the i-th of n, from 0, which have the folder together.
        kind: "jsonl" or "parquet".

    Raises:
        InputError: the folder cannot be written, or another run has it.
    """

    def __init__(self, out: Path, *, shard: tuple[int, int] = (0, 1), kind: str = "jsonl") -> None:
        self.out = out
        self._hidden = out / _HIDDEN
        self._kind = kind
        self._label = f"-{shard[0]}-of-{shard[1]}" if shard[1] > 1 else ""
        try:
            self._hidden.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock(*shard)
            self._journal_path = self._hidden / f"journal{self._label}.jsonl"
            self._known = self._read_known()
            self._journal = self._open_journal()
            self._drop_partials()
        except OSError as error:
            raise InputError(
                f"OUT must be a folder that can be written, got {str(out)!r}: {error.strerror}"
            ) from error
        self._noting = threading.Lock()
        self._part: list[Entry] = []
        self._n_parts = 0

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._lock.close()  # which gives it back

    def known(self, key: str) -> Entry | None:
        """Return what became of a row, as far as that is written down, by its key."""
        return self._known.get(key)

    def note(self, entry: Entry) -> None:
        """Write down what became of a row; it is there whatever comes. Any thread may call it.

        Raises:
            OSError: it cannot be written.
        """
        line = json.dumps(asdict(entry)).encode() + b"\n"
        with self._noting:
            self._known[entry.key] = entry
            self._journal.write(line)
            self._journal.flush()
        os.fsync(self._journal.fileno())

    def commit(self, entry: Entry, content: bytes) -> None:
        """Write the audio of a row, and down that it is there. Any thread may call it.

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

    def add(self, entry: Entry) -> None:
        """Add the next row's entry to the manifest; rows come in the order of the input.

        Raises:
            OSError: it cannot be written.
        """
        self._part.append(entry)
        if len(self._part) == PART_ROWS:
            self._write_part()

    def finish(self) -> None:
        """Write the rest of the manifest, and end the journal, which it replaces.

        Raises:
            OSError: it cannot be written.
        """
        if self._part or not self._n_parts:
            self._write_part()
        for path in self._parts()[self._n_parts :]:
            path.unlink()  # of an input that was longer
        _sync_folder(self.out)  # before the journal goes, all that it tells of has its name
        self._journal.close()
        self._journal_path.unlink()

    def _write_part(self) -> None:
        path = self.out / f"manifest{self._label}-{self._n_parts:05d}.{self._kind}"
        partial = self._partial(path.name)
        with _whole(partial) as file:
            (_write_parquet if self._kind == "parquet" else _write_jsonl)(file, self._part)
        os.replace(partial, path)
        self._part = []
        self._n_parts += 1

    def _partial(self, name: str) -> Path:
        """Return where a file is written before it has its name."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self._hidden / f"partial{self._label}-{digest}"

    def _drop_partials(self) -> None:
        for path in self._hidden.glob(f"partial{self._label}-{'[0-9a-f]' * 16}"):
            path.unlink()

    def _parts(self) -> list[Path]:
        return sorted(
            self.out.glob(f"manifest{self._label}-[0-9][0-9][0-9][0-9][0-9].{self._kind}")
        )

    def _read_known(self) -> dict[str, Entry]:
        known: dict[str, Entry] = {}
        for path in self._parts():
            read = _read_parquet if self._kind == "parquet" else _read_jsonl
            known.update((entry.key, entry) for entry in read(path))
        if self._journal_path.exists():
            known.update((entry.key, entry) for entry in _read_jsonl(self._journal_path))
        return known

    def _open_journal(self) -> IO[bytes]:
        """Open the journal to add to it, without the half of a line that a sudden end left."""
        file = self._journal_path.open("a+b")
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        return file

    def _take_lock(self, i: int, n: int) -> IO[bytes]:
        mine = self._hidden / f"{i}-of-{n}.lock"
        for path in sorted(self._hidden.glob("*-of-*.lock")):
            if path != mine and path.stem.rpartition("-")[2] != str(n):
                # Shards of another number would have other rows.
                with path.open("ab") as other:
                    _lock(other, self.out)
        file = mine.open("ab")
        try:
            _lock(file, self.out)
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


def _read_jsonl(path: Path) -> Iterator[Entry]:
    for line in path.read_bytes().split(b"\n"):
        try:
            yield Entry(**json.loads(line))
        except (ValueError, TypeError):
            continue  # the end of a journal that was being written


def _write_jsonl(file: IO[bytes], entries: Sequence[Entry]) -> None:
    for entry in entries:
        file.write(json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n")


def _schema() -> Any:
    import pyarrow

    kinds = {"int": pyarrow.int64(), "float": pyarrow.float64(), "str": pyarrow.string()}
    columns = []
    for f in fields(Entry):
        kind = str(f.type).removesuffix(" | None")
        columns.append((f.name, pyarrow.uint64() if f.name == "seed" else kinds[kind]))
    return pyarrow.schema(columns)


def _read_parquet(path: Path) -> Iterator[Entry]:
    import pyarrow.parquet as parquet

    for values in parquet.read_table(path).to_pylist():
        yield Entry(**values)


def _write_parquet(file: IO[bytes], entries: Sequence[Entry]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.Table.from_pylist([asdict(entry) for entry in entries], schema=_schema())
    parquet.write_table(table, file)
