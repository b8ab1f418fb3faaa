"""The state behind the routes: the backend once it is loaded, voices, who waits, and the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from bark_fast.engine.stats import EngineStats
from bark_fast.server.admission import Admission
from bark_fast.server.backend import Backend
from bark_fast.server.errors import unavailable
from bark_fast.server.metrics import Metrics
from bark_fast.server.options import ServerOptions
from bark_fast.server.voices import ServerVoices

log = logging.getLogger("bark_fast.server")

Status = Literal["loading", "ready", "failed", "draining"]


class Service:
    """One server's state, in one event loop.

    Args:
        load: returns the backend; called once, when the server starts.
        voices: that clients may name, and the rate of the audio.
        options: as the name says.

    Attributes:
        status: "loading", "ready", "failed" (the backend could not be loaded) or "draining" (no
            more requests are taken).
        n_answers: requests for speech that are not over.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Backend]],
        voices: ServerVoices,
        *,
        options: ServerOptions,
    ) -> None:
        self.voices = voices
        self.options = options
        self.admission = Admission(
            max_requests=options.max_requests, max_audio_s=options.max_queued_audio_s
        )
        self.metrics = Metrics(self.admission, self._stats)
        self.status: Status = "loading"
        self.n_answers = 0
        self._load = load
        self._backend: Backend | None = None
        self._loading: asyncio.Task[None] | None = None

    @property
    def backend(self) -> Backend:
        """What speaks.

        Raises:
            ApiError: it does not: not yet, or no more.
        """
        if self.status == "ready" and self._backend is not None:
            return self._backend
        raise unavailable(self.reason())

    def reason(self) -> str:
        """Return why it is not ready, in words."""
        return {
            "loading": "the model is being loaded",
            "failed": "the model could not be loaded; the server's log says more",
            "draining": "the server is shutting down",
            "ready": "",
        }[self.status]

    def start(self) -> None:
        """Begin to load the backend."""
        self._loading = asyncio.create_task(self._run_load())

    async def _run_load(self) -> None:
        try:
            self._backend = await self._load()
        except Exception as error:  # a server that says so is easier to find than none
            if self.status == "loading":
                self.status = "failed"
            log.error("the model could not be loaded", exc_info=error)
            return
        if self.status == "loading":
            self.status = "ready"
            log.info("ready")

    def drain(self) -> None:
        """Take no more requests."""
        self.status = "draining"

    async def finish(self) -> None:
        """Wait until no answer is under way, as long as the options say, and end those that are.

        They end as after a failure, so that clients learn of it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.drain_s
        while self.n_answers and loop.time() < deadline:
            await asyncio.sleep(0.05)
        if self.n_answers:
            log.warning("stopping: %d answers are broken off", self.n_answers)
        if self._backend is not None:
            await self._backend.close(cancel=True)

    async def close(self) -> None:
        """Give up what is under way, and the backend."""
        self.drain()
        if self._loading is not None:
            # A load cannot be interrupted half-way: its thread holds the model's files.
            await asyncio.wait([self._loading])
        if self._backend is not None:
            await self._backend.close(cancel=True)
            self._backend = None

    def _stats(self) -> EngineStats | None:
        return None if self._backend is None else self._backend.stats()
