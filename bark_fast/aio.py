"""AsyncBark: text in, speech out, for asyncio programs."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any, Literal

from bark_fast.bark import Bark
from bark_fast.engine.stats import EngineStats
from bark_fast.errors import ClosedError, InputError, QueueFullError
from bark_fast.process import HomeProcess
from bark_fast.request import Request
from bark_fast.streaming import StreamPlan
from bark_fast.text import warn_of_silence
from bark_fast.types import GenerationParams, Speech
from bark_fast.validation import check_integer
from bark_fast.voices import VoiceLike


class AsyncBark:
    """Speaks for any number of asyncio tasks at once; all share one engine and its thread.

        async with AsyncBark.from_pretrained("suno/bark") as bark:
            speech = await bark.generate("Hello")

    Cancelling a task that waits for speech gives the utterance up. Leaving the block waits for what
    is still being made.

    Args:
        bark: what speaks; it can be used from other threads meanwhile.
        max_pending: the most utterances that may be waiting or under way.
        when_full: "wait" lets `generate` wait for a place; "error" raises QueueFullError.
    """

    def __init__(
        self,
        bark: Bark,
        *,
        max_pending: int = 1024,
        when_full: Literal["wait", "error"] = "wait",
    ) -> None:
        if not isinstance(bark, Bark):
            raise InputError(f"bark must be a Bark, got {type(bark).__name__}")
        check_integer("max_pending", max_pending, "an integer >= 1", 1, 2**31 - 1)
        if when_full not in ("wait", "error"):
            raise InputError(f'when_full must be "wait" or "error", got {when_full!r}')
        self.bark = bark
        self._max_pending = max_pending
        self._when_full = when_full
        self._places = asyncio.Semaphore(max_pending)
        self._pending: set[Future[Speech]] = set()
        self._closed = False
        self._home = HomeProcess("an AsyncBark", self._is_idle)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        max_pending: int = 1024,
        when_full: Literal["wait", "error"] = "wait",
        **options: Any,
    ) -> AsyncBark:
        """Load a checkpoint; `options` are those of `Bark.from_pretrained`."""
        bark = Bark.from_pretrained(model, **options)
        return cls(bark, max_pending=max_pending, when_full=when_full)

    async def __aenter__(self) -> AsyncBark:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(cancel=kind is not None)

    async def generate(
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
    ) -> Speech:
        """Say a text; arguments and result are those of `Bark.generate`.

        Raises:
            InputError: an argument is wrong.
            QueueFullError: `max_pending` utterances are waiting, with when_full="error".
            ClosedError: this AsyncBark was closed before the speech was made.
        """
        self._check_open()
        # Voices are read from files, and tokenising takes its time: not in the event loop.
        request = await asyncio.to_thread(self.bark.request, text, voice, params)
        speech = await self._finish(await self._begin(request))
        warn_of_silence(speech.text, len(speech.samples))
        return speech

    async def stream(
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        language: str = "en",
        pause_s: float = 0.0,
    ) -> AsyncIterator[Speech]:
        """Say a text of any length, a sentence at a time; arguments are those of `Bark.stream`.

        Yields:
            A Speech a sentence, while the next ones are being made.

        Raises:
            InputError, QueueFullError, ClosedError: as `generate`, at the first sentence.
        """
        self._check_open()
        plan = await asyncio.to_thread(
            self.bark.stream_plan, text, voice, params, language, pause_s=pause_s
        )
        waiting: deque[Future[Speech]] = deque()
        try:
            while True:
                if not waiting:
                    request = await asyncio.to_thread(plan.peek, 0)
                    if request is None:
                        return
                    # A stream that has begun waits for its place, whatever `when_full`.
                    waiting.append(await self._begin(request, wait=plan.n_begun > 0))
                    plan.advance()
                await self._work_ahead(plan, waiting)
                speech = plan.heard(await self._finish(waiting[0]))
                waiting.popleft()
                # The next ones are under way while this one is listened to.
                await self._work_ahead(plan, waiting)
                yield speech
        finally:
            for future in waiting:
                future.cancel()

    def stats(self) -> EngineStats:
        """Return what the engine has done so far and what waits."""
        return self.bark.stats()

    async def close(self, *, cancel: bool = False) -> None:
        """Take no more requests, and finish those that are there.

        With `cancel` they are given up, and whoever waits for them gets ClosedError.
        """
        self._closed = True
        self._home.check()
        pending = list(self._pending)
        if cancel:
            for future in pending:
                future.cancel()
        if pending:
            await asyncio.wait([asyncio.wrap_future(future) for future in pending])

    async def _work_ahead(self, plan: StreamPlan, waiting: deque[Future[Speech]]) -> None:
        """Begin the sentences that may and that there is a place for."""
        while (request := await asyncio.to_thread(plan.peek, len(waiting))) is not None:
            if self._closed or self._places.locked():
                return
            waiting.append(await self._begin(request))
            plan.advance()

    async def _begin(self, request: Request, *, wait: bool = False) -> Future[Speech]:
        if self._when_full == "error" and not wait and self._places.locked():
            raise QueueFullError(
                f"max_pending utterances, {self._max_pending}, are waiting or under way already"
            )
        await self._places.acquire()
        try:
            self._check_open()
            future = self.bark.submit(request, urgent=True)
        except BaseException:
            self._places.release()
            raise
        self._pending.add(future)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda done: _call_soon(loop, self._ended, done))
        return future

    def _ended(self, future: Future[Speech]) -> None:
        self._pending.discard(future)
        self._places.release()

    async def _finish(self, future: Future[Speech]) -> Speech:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._closed and not _is_cancelling():
                raise ClosedError("this AsyncBark was closed before the speech was made") from None
            raise

    def _is_idle(self) -> bool:
        """Return True if a copy in a fork could be used."""
        return not self._pending

    def _check_open(self) -> None:
        self._home.check()
        if self._closed:
            raise ClosedError("this AsyncBark is closed")


def _call_soon(loop: asyncio.AbstractEventLoop, call: Any, argument: Any) -> None:
    # The loop may have ended before the engine did: then nobody waits any more.
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, argument)


def _is_cancelling() -> bool:
    """Return True if the task was cancelled, and not what it waits for."""
    task = asyncio.current_task()
    cancelling = getattr(task, "cancelling", None)  # from Python 3.11 on
    return cancelling is not None and cancelling() > 0
