"""Rows into a folder, in this process."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bark_fast.bulk.ledger import Entry, Ledger
from bark_fast.bulk.rows import RawRow, Unreadable, checked_id
from bark_fast.bulk.speaker import RowOptions, RowSpeaker, failure
from bark_fast.errors import InputError
from bark_fast.validation import check_integer

if TYPE_CHECKING:
    from bark_fast.bark import Bark


@dataclass
class Summary:
    """How far a run is.

    Attributes:
        rows: of this shard, seen so far.
        done: that have audio; `skipped` of them had it before this run.
        failed: that have an error.
        audio_s: seconds of audio that this run has made.
        elapsed_s: of time, since it began.
        ended_early: more rows failed than were allowed.
    """

    rows: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    audio_s: float = 0.0
    elapsed_s: float = 0.0
    ended_early: bool = False


def run(
    rows: Iterable[RawRow],
    out: str | os.PathLike[str],
    *,
    bark: Bark,
    format: str = "wav",
    manifest: str = "jsonl",
    seed: int = 0,
    pause_s: float = 0.25,
    shard: tuple[int, int] = (0, 1),
    ignored: Collection[str] | None = (),
    retry_errors: bool = False,
    max_errors: int | None = None,
    report: Callable[[Summary], None] | None = None,
) -> Summary:
    """Say each row into a file of its own, once.

    What an earlier run into the same folder has done is not done again; a run that was ended in any
    way and begun again leaves the same folder as one that was not.

    Args:
        rows: mappings with `id` and `text`, and if they have them `voice`, `language` and the names
            of GenerationParams; see `read_rows`. A row that is wrong is one with an error.
        out: the folder for audio files and manifest; it is made if it is not there.
        bark: speaks.
        format: of the audio files: "wav", "flac", "mp3", "opus", ...
        manifest: "jsonl" or "parquet" (extra `bulk`).
        seed: of the run; a row without a seed takes one from it and from its id.
        pause_s: silence between the sentences of a row.
        shard: (i, n): only the i-th of n parts, from 0; all n may have the same folder.
        ignored: names that rows may have and that mean nothing; None is any.
        retry_errors: try those again that had an error.
        max_errors: more end the run.
        report: called whenever something has ended.

    Returns:
        What was done.

    Raises:
        InputError: an argument is wrong, or another run has the folder.
        OSError: the folder takes no more; what is there is whole, and another run goes on from it.
    """
    options = RowOptions(format, seed, pause_s, ignored, retry_errors)
    check_max_errors(max_errors)
    with Ledger(Path(out), shard=shard, kind=manifest) as ledger:
        progress = Run(ledger, shard=shard, max_errors=max_errors, report=report)
        speaker = RowSpeaker(bark, ledger, options)
        speaker.say(progress.screened(rows), progress.settle, goes_on=progress.goes_on)
        return progress.finish()


def check_max_errors(max_errors: int | None) -> None:
    """Check the argument of `run` of this name.

    Raises:
        InputError: it is wrong.
    """
    if max_errors is not None:
        check_integer("max_errors", max_errors, "None or an integer >= 0", 0, 2**63)


class Run:
    """What is one for all rows: which are there, their order in the manifest, and the summary.

    Args:
        ledger, shard, max_errors, report: as in `run`.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        shard: tuple[int, int],
        max_errors: int | None,
        report: Callable[[Summary], None] | None,
    ) -> None:
        self._ledger = ledger
        self._shard = shard
        self._max_errors = max_errors
        self._report = report
        self._ids: set[bytes] = set()
        self._order: deque[int] = deque()  # the rows that are not in the manifest yet
        self._settled: dict[int, Entry] = {}  # those of them that wait for an earlier one
        self._began = time.perf_counter()
        self._summary = Summary()

    def screened(self, rows: Iterable[RawRow]) -> Iterator[tuple[int, RawRow]]:
        """Yield the rows of this shard with their numbers; a repeated id is settled here."""
        i, n = self._shard
        for index, raw in enumerate(rows):
            if not isinstance(raw, (Mapping, Unreadable)):
                raw = Unreadable(f"a row must be a mapping, got {type(raw).__name__}")
            row_id = _id_of(raw)
            digest = hashlib.sha256(
                (f"row {index}" if row_id is None else row_id).encode()
            ).digest()
            if int.from_bytes(digest[:8], "little") % n != i:
                continue
            self._summary.rows += 1
            self._order.append(index)
            if row_id is not None and digest[:16] in self._ids:
                repeated = InputError(f"id must be a row's own, got {row_id!r} once more")
                self.settle(failure(index, raw, repeated))
                continue
            self._ids.add(digest[:16])
            yield index, raw

    def settle(self, entry: Entry, is_new: bool = True) -> None:
        """Count a row that is over, and put it into the manifest when those before it are there.

        Args:
            is_new: it was said now.
        """
        if entry.error is not None:
            self._summary.failed += 1
        else:
            self._summary.done += 1
            if is_new:
                self._summary.audio_s += entry.seconds or 0.0
            else:
                self._summary.skipped += 1
        self._settled[entry.row] = entry
        while self._order and (first := self._settled.pop(self._order[0], None)) is not None:
            self._ledger.add(first)
            self._order.popleft()
        self._summary.elapsed_s = time.perf_counter() - self._began
        if self._report is not None:
            self._report(self._summary)

    def goes_on(self) -> bool:
        """Return False when more rows have failed than may."""
        self._summary.ended_early = (
            self._max_errors is not None and self._summary.failed > self._max_errors
        )
        return not self._summary.ended_early

    def finish(self) -> Summary:
        """End the run, when all rows that were begun are settled."""
        self._summary.elapsed_s = time.perf_counter() - self._began
        if not self._summary.ended_early:
            self._ledger.finish()
        return self._summary


def _id_of(raw: RawRow) -> str | None:
    """Return a row's id if it has one that can be used."""
    try:
        return None if isinstance(raw, Unreadable) else checked_id(raw.get("id"))
    except InputError:
        return None
