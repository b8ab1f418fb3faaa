"""Say rows, as many at a time as the engine takes, and keep the ledger."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bark_fast.audio import FORMATS, save_audio
from bark_fast.bulk.identity import model_hash, row_key
from bark_fast.bulk.ledger import Entry, Ledger
from bark_fast.bulk.rows import RawRow, Row, Unreadable, check_row, checked_id
from bark_fast.encoders import check_encoding
from bark_fast.errors import BarkFastError, InputError, collected_warnings, is_asynchronous
from bark_fast.streaming import StreamPlan
from bark_fast.types import Speech, Voice
from bark_fast.validation import check_integer, check_number, check_seed

if TYPE_CHECKING:
    from bark_fast.bark import Bark

_WRITERS = 2  # threads that encode and write; the engine needs the rest
_ALL_AT_ONCE = (2**31,)  # sentences of a row that may be under way: nobody waits for the first


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


@dataclass(frozen=True)
class _Options:
    format: str
    seed: int
    pause_s: float
    shard: tuple[int, int]
    ignored: Collection[str] | None
    retry_errors: bool
    max_errors: int | None


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
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    check_encoding(format, None)
    if manifest not in ("jsonl", "parquet"):
        raise InputError(f'manifest must be "jsonl" or "parquet", got {manifest!r}')
    check_seed("seed", seed)
    check_number("pause_s", pause_s, "from 0 to 60 seconds", 0, 60)
    check_integer("shard[1]", shard[1], "an integer >= 1", 1, 2**31)
    check_integer("shard[0]", shard[0], f"from 0 to {shard[1] - 1}", 0, shard[1] - 1)
    if max_errors is not None:
        check_integer("max_errors", max_errors, "an integer >= 0", 0, 2**63)
    options = _Options(format, seed, pause_s, shard, ignored, retry_errors, max_errors)
    with Ledger(Path(out), shard=shard, kind=manifest) as ledger:
        return _Run(bark, ledger, options, report or (lambda _: None)).go(iter(rows))


@dataclass
class _Job:
    """A row under way.

    Attributes:
        place: of it among the rows of this shard; `index`: among all.
    """

    place: int
    index: int
    row: Row
    key: str
    plan: StreamPlan
    waiting: deque[Future[Speech]] = field(default_factory=deque)
    samples: list[npt.NDArray[np.float32]] = field(default_factory=list)


class _Run:
    """One run's state. All happens in the thread that calls `go`, but for the engine's steps and
    the writing of files."""

    def __init__(
        self, bark: Bark, ledger: Ledger, options: _Options, report: Callable[[Summary], None]
    ) -> None:
        self._bark = bark
        self._ledger = ledger
        self._options = options
        self._report = report
        self._how = f"{options.format} {options.pause_s}"
        self._model = model_hash(bark)
        # Twice what the engine runs together, so that it never waits for this thread.
        self._limit = 2 * bark.engine.runner.config.max_running
        self._writers = ThreadPoolExecutor(_WRITERS, "bark-fast writer")
        self._jobs: dict[int, _Job] = {}
        self._n_under_way = 0  # sentences
        # What has ended, with the method that goes on from there.
        self._ended: queue.SimpleQueue[tuple[Callable[[_Job, Any], None], _Job, Future[Any]]]
        self._ended = queue.SimpleQueue()
        self._settled: dict[int, Entry] = {}  # of rows that wait for an earlier one
        self._n_in_manifest = 0
        self._ids: set[bytes] = set()
        self._began = time.perf_counter()
        self._summary = Summary()

    def go(self, rows: Iterator[RawRow]) -> Summary:
        """Do all rows."""
        try:
            with self._writers, collected_warnings([]):  # a row's warnings are not this run's
                self._do_all(enumerate(rows))
        except BaseException:
            for job in self._jobs.values():
                for future in job.waiting:
                    future.cancel()
            raise
        if not self._summary.ended_early:
            self._ledger.finish()
        return self._summary

    def _do_all(self, rows: Iterator[tuple[int, RawRow]]) -> None:
        next_row = next(rows, None)
        while True:
            if next_row is not None and self._has_room() and self._may_go_on():
                self._begin(*next_row)
                next_row = next(rows, None)
            elif self._jobs:
                go_on, job, ended = self._ended.get()
                go_on(job, ended)
            else:
                return
            self._summary.elapsed_s = time.perf_counter() - self._began
            self._report(self._summary)

    def _has_room(self) -> bool:
        return max(self._n_under_way, len(self._jobs)) < self._limit

    def _may_go_on(self) -> bool:
        allowed = self._options.max_errors
        self._summary.ended_early = allowed is not None and self._summary.failed > allowed
        return not self._summary.ended_early

    def _begin(self, index: int, raw: RawRow) -> None:
        """Find out what there is to do for a row, and begin it."""
        row_id = _id_of(raw)
        i, n = self._options.shard
        if _number(f"row {index}" if row_id is None else row_id) % n != i:
            return
        place = self._summary.rows
        self._summary.rows += 1
        try:
            row, voice, key = self._check(raw)
            known = self._ledger.known(key)
            if known is not None and self._still_holds(known):
                self._summary.skipped += known.error is None
                self._settle(place, replace(known, row=index))
                return
            job = _Job(place, index, row, key, self._plan(row, voice))
        except BarkFastError as error:
            self._settle(place, _failure(index, _shown_id(raw), error, key=""))
            return
        self._jobs[place] = job
        self._submit(job)

    def _check(self, raw: RawRow) -> tuple[Row, Voice | None, str]:
        """Return a row, its voice and its key.

        Raises:
            BarkFastError: it is wrong.
        """
        row = check_row(raw, seed=self._options.seed, ignored=self._options.ignored)
        digest = hashlib.sha256(row.id.encode()).digest()[:16]
        if digest in self._ids:
            raise InputError(f"id must be a row's own, got {row.id!r} once more")
        self._ids.add(digest)
        voice = None if row.voice is None else self._bark.load_voice(row.voice)
        return row, voice, row_key(row, voice, model=self._model, how=self._how)

    def _still_holds(self, known: Entry) -> bool:
        if known.path is None:
            return not self._options.retry_errors
        return (self._ledger.out / known.path).exists()

    def _plan(self, row: Row, voice: Voice | None) -> StreamPlan:
        return StreamPlan(
            self._bark.requests,
            row.text,
            voice,
            row.params,
            row.language,
            pause_s=self._options.pause_s,
            ahead=_ALL_AT_ONCE,
        )

    def _submit(self, job: _Job) -> None:
        """Begin those sentences of a row that can be."""
        try:
            while (request := job.plan.peek(len(job.waiting))) is not None:
                future = self._bark.submit(request)
                job.waiting.append(future)
                job.plan.advance()
                self._n_under_way += 1
                future.add_done_callback(lambda done: self._ended.put((self._hear, job, done)))
        except BarkFastError as error:
            self._fail(job, error)

    def _hear(self, job: _Job, _: Future[Speech]) -> None:
        """Go on with a row of which a sentence has ended."""
        self._n_under_way -= 1
        if job.place not in self._jobs:
            return  # it has failed, and this sentence was given up
        try:
            while job.waiting and job.waiting[0].done():
                job.samples.append(job.plan.heard(job.waiting[0].result()).samples)
                job.waiting.popleft()
        except Exception as error:
            if is_asynchronous(error):
                raise
            self._fail(job, error)
            return
        self._submit(job)
        if job.place in self._jobs and not job.waiting:
            written = self._writers.submit(self._write, job)
            written.add_done_callback(lambda done: self._ended.put((self._finish, job, done)))

    def _write(self, job: _Job) -> Entry:
        """Write a row's audio, in a thread of the writers."""
        samples = np.concatenate(job.samples)
        rate, format = self._bark.sample_rate_hz, self._options.format
        file = io.BytesIO()
        save_audio(file, samples, rate, format=format)
        entry = Entry(
            row=job.index,
            id=job.row.id,
            path=f"{job.row.id}-{job.key[:12]}.{format}",
            seconds=len(samples) / rate,
            seed=job.row.params.seed,
            voice=job.row.voice,
            sha256=hashlib.sha256(file.getvalue()).hexdigest(),
            error=None,
            key=job.key,
        )
        self._ledger.commit(entry, file.getvalue())
        return entry

    def _finish(self, job: _Job, written: Future[Entry]) -> None:
        """End a row whose file is written.

        Raises:
            OSError: it could not be, nor can others.
        """
        entry = written.result()
        del self._jobs[job.place]
        self._summary.audio_s += entry.seconds or 0.0
        self._settle(job.place, entry)

    def _fail(self, job: _Job, error: Exception) -> None:
        """End a row that cannot be said."""
        del self._jobs[job.place]
        for future in job.waiting:
            future.cancel()
        entry = _failure(job.index, job.row.id, error, key=job.key)
        self._ledger.note(entry)
        self._settle(job.place, entry)

    def _settle(self, place: int, entry: Entry) -> None:
        """Put a row into the manifest, when those before it are there."""
        if entry.error is None:
            self._summary.done += 1
        else:
            self._summary.failed += 1
        self._settled[place] = entry
        while (following := self._settled.pop(self._n_in_manifest, None)) is not None:
            self._ledger.add(following)
            self._n_in_manifest += 1


def _failure(index: int, row_id: str, error: Exception, *, key: str) -> Entry:
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, BarkFastError):
        message = f"{type(error).__name__}: {message}"
    return Entry(index, row_id, None, None, None, None, None, message, key)


def _id_of(raw: RawRow) -> str | None:
    """Return a row's id if it has one that can be used."""
    try:
        return None if isinstance(raw, Unreadable) else checked_id(raw.get("id"))
    except InputError:
        return None


def _shown_id(raw: RawRow) -> str:
    """Return what stands in the place of an id, usable or not."""
    value = "" if isinstance(raw, Unreadable) or raw.get("id") is None else raw["id"]
    return str(value).encode("utf-8", "backslashreplace").decode()


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
