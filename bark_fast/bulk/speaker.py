"""Say rows with one engine, as many at a time as it takes, and write their files."""

from __future__ import annotations

import hashlib
import io
import queue
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bark_fast.audio import FORMATS, save_audio
from bark_fast.bulk.identity import model_hash, row_key
from bark_fast.bulk.ledger import Entry, Journal
from bark_fast.bulk.rows import RawRow, Row, Unreadable, check_row
from bark_fast.encoders import check_encoding
from bark_fast.errors import BarkFastError, InputError, collected_warnings, is_asynchronous
from bark_fast.request import Request
from bark_fast.streaming import StreamPlan
from bark_fast.types import Speech, Voice
from bark_fast.validation import check_pause, check_seed

if TYPE_CHECKING:
    from bark_fast.bark import Bark

_WRITERS = 2  # threads that encode and write; the engine needs the rest
_MAX_SHOWN = 1000  # characters of an error, or of an id that is none
_ALL_AT_ONCE = (2**31,)  # sentences of a row that may be under way: nobody waits for the first


@dataclass(frozen=True)
class RowOptions:
    """How rows are said; the arguments of `bulk.run` of these names.

    Raises:
        InputError: one is wrong.
    """

    format: str = "wav"
    seed: int = 0
    pause_s: float = 0.25
    ignored: Collection[str] | None = ()
    retry_errors: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        check_encoding(self.format, None)
        check_seed("seed", self.seed)
        check_pause("pause_s", self.pause_s)


@dataclass
class _Job:
    """A row under way; `index` is its number in the input, `is_written` if it is being written."""

    index: int
    row: Row
    key: str
    plan: StreamPlan
    waiting: deque[Future[Speech]] = field(default_factory=deque)
    samples: list[npt.NDArray[np.float32]] = field(default_factory=list)
    is_written: bool = False


class RowSpeaker:
    """Says rows into a folder.

    Args:
        bark: speaks.
        journal: of the folder.
    """

    def __init__(self, bark: Bark, journal: Journal, options: RowOptions) -> None:
        self._bark = bark
        self._journal = journal
        self._options = options
        self._how = f"{options.format} {options.pause_s}"
        self._model = model_hash(bark)

    def say(
        self,
        rows: Iterator[tuple[int, RawRow]],
        done: Callable[[Entry, bool], None],
        *,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> None:
        """Say rows, each with its number in the input. Several threads may do so.

        Args:
            done: called in this thread with what became of each row, and whether it was said now;
                in any order.
            goes_on: no more rows are begun when this returns False.

        Raises:
            OSError: the folder takes no more.
        """
        with collected_warnings([]):  # a row's warnings are nobody's here
            _Saying(self, done, goes_on).all(rows)

    def check(self, raw: RawRow) -> tuple[Row, Voice | None, str]:
        """Return a row, its voice and its key.

        Raises:
            BarkFastError: it is wrong.
        """
        row = check_row(raw, seed=self._options.seed, ignored=self._options.ignored)
        voice = None if row.voice is None else self._bark.load_voice(row.voice)
        return row, voice, row_key(row, voice, model=self._model, how=self._how)

    def known(self, row: Row, key: str) -> Entry | None:
        """Return what became of a row earlier, or in another worker, if that still holds."""
        entry = self._journal.known(key)
        if entry is None and self._journal.has(self._path(row, key)):
            self._journal.read()  # another worker has done it since
            entry = self._journal.known(key)
        if entry is None or (entry.path is None and self._options.retry_errors):
            return None
        return entry if entry.path is None or self._journal.has(entry.path) else None

    def plan(self, row: Row, voice: Voice | None) -> StreamPlan:
        """Return the plan by which a row is said.

        Raises:
            BarkFastError: nothing of it can be.
        """
        return StreamPlan(
            self._bark.requests,
            row.text,
            voice,
            row.params,
            row.language,
            pause_s=self._options.pause_s,
            ahead=_ALL_AT_ONCE,
        )

    @property
    def limit(self) -> int:
        """Sentences under way: twice what the engine runs together, so that it never waits."""
        return 2 * self._bark.engine.runner.config.max_running

    def submit(self, request: Request) -> Future[Speech]:
        """Begin a sentence."""
        return self._bark.submit(request)

    def write(self, job: _Job) -> Entry:
        """Write a row's audio; any thread may.

        Raises:
            OSError: it cannot be written.
        """
        samples = np.concatenate(job.samples)
        rate, format = self._bark.sample_rate_hz, self._options.format
        file = io.BytesIO()
        save_audio(file, samples, rate, format=format)
        entry = Entry(
            row=job.index,
            id=job.row.id,
            path=self._path(job.row, job.key),
            seconds=len(samples) / rate,
            seed=job.row.params.seed,
            voice=job.row.voice,
            sha256=hashlib.sha256(file.getvalue()).hexdigest(),
            error=None,
            key=job.key,
        )
        self._journal.commit(entry, file.getvalue())
        return entry

    def _path(self, row: Row, key: str) -> str:
        return f"{row.id}-{key[:12]}.{self._options.format}"

    def note(self, entry: Entry) -> None:
        """Write down that a row cannot be said."""
        self._journal.note(entry)


class _Saying:
    """One call of `RowSpeaker.say`. All happens in its thread, but for the engine's steps and the
    writing of files."""

    def __init__(
        self, speaker: RowSpeaker, done: Callable[[Entry, bool], None], goes_on: Callable[[], bool]
    ) -> None:
        self._speaker = speaker
        self._done = done
        self._goes_on = goes_on
        self._writers = ThreadPoolExecutor(_WRITERS, "bark-fast writer")
        self._jobs: dict[int, _Job] = {}
        self._n_under_way = 0  # sentences
        # What has ended, with the method that goes on from there.
        self._ended: queue.SimpleQueue[tuple[Callable[[_Job, Any], None], _Job, Future[Any]]]
        self._ended = queue.SimpleQueue()

    def all(self, rows: Iterator[tuple[int, RawRow]]) -> None:
        """Say all rows."""
        try:
            with self._writers:
                self._say_all(rows)
        except BaseException:
            for job in self._jobs.values():
                for future in job.waiting:
                    future.cancel()
            raise

    def _say_all(self, rows: Iterator[tuple[int, RawRow]]) -> None:
        next_row = next(rows, None)
        while True:
            if next_row is not None and self._has_room() and self._goes_on():
                self._begin(*next_row)
                next_row = next(rows, None)
            elif self._jobs or self._n_under_way:
                go_on, job, ended = self._ended.get()
                go_on(job, ended)
            else:
                return

    def _has_room(self) -> bool:
        return max(self._n_under_way, len(self._jobs)) < self._speaker.limit

    def _begin(self, index: int, raw: RawRow) -> None:
        """Find out what there is to do for a row, and begin it."""
        try:
            row, voice, key = self._speaker.check(raw)
            if (known := self._speaker.known(row, key)) is not None:
                self._done(replace(known, row=index), False)
                return
            job = _Job(index, row, key, self._speaker.plan(row, voice))
        except BarkFastError as error:
            self._done(failure(index, raw, error), True)
            return
        self._jobs[index] = job
        self._submit(job)

    def _submit(self, job: _Job) -> None:
        """Begin those sentences of a row that can be."""
        try:
            while (request := job.plan.peek(len(job.waiting))) is not None:
                future = self._speaker.submit(request)
                job.waiting.append(future)
                job.plan.advance()
                self._n_under_way += 1
                future.add_done_callback(lambda done: self._ended.put((self._hear, job, done)))
        except BarkFastError as error:
            self._fail(job, error)

    def _hear(self, job: _Job, _: Future[Speech]) -> None:
        """Go on with a row of which a sentence has ended."""
        self._n_under_way -= 1
        if job.index not in self._jobs:
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
        if job.index in self._jobs and not job.waiting and not job.is_written:
            job.is_written = True  # several sentences may have ended before the first was heard
            written = self._writers.submit(self._speaker.write, job)
            written.add_done_callback(lambda done: self._ended.put((self._finish, job, done)))

    def _finish(self, job: _Job, written: Future[Entry]) -> None:
        """End a row whose file is written.

        Raises:
            OSError: it could not be, nor can others.
        """
        try:
            entry = written.result()
        except BarkFastError as error:  # its format holds no such audio
            self._fail(job, error)
            return
        del self._jobs[job.index]
        self._done(entry, True)

    def _fail(self, job: _Job, error: Exception) -> None:
        """End a row that cannot be said."""
        del self._jobs[job.index]
        for future in job.waiting:
            future.cancel()
        entry = failure(job.index, {"id": job.row.id}, error, key=job.key)
        self._speaker.note(entry)
        self._done(entry, True)


def failure(index: int, raw: RawRow, error: Exception, *, key: str = "") -> Entry:
    """Return the entry of a row that has no audio."""
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, BarkFastError):
        message = f"{type(error).__name__}: {message}"
    row_id = "" if isinstance(raw, Unreadable) or raw.get("id") is None else raw["id"]
    return Entry(index, _shown(str(row_id)), None, None, None, None, None, _shown(message), key)


def _shown(text: str) -> str:
    """Return a text that can be written, usable or not: an error may quote a whole book."""
    if len(text) > _MAX_SHOWN:
        text = f"{text[:_MAX_SHOWN]}..."
    return text.encode("utf-8", "backslashreplace").decode()
