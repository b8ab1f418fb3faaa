"""A backend of the server whose sentences come when the test says so."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from bark_fast.engine.stats import EngineStats
from bark_fast.errors import ClosedError, warn
from bark_fast.types import GenerationParams, Speech

RATE_HZ = 24_000


def tone(n_samples: int, number: int) -> np.ndarray:
    """Return the samples of the sentence of a number: float32 [T], each another tone."""
    t = np.arange(n_samples) / RATE_HZ
    return (0.3 * np.sin(2 * np.pi * (220 + 20 * (number % 30)) * t)).astype(np.float32)


class FakeBackend:
    """Says a sentence for each full stop: a tone of its own.

    Args:
        gated: a sentence is only said when the test allows it by `say`.
        audio_s: of a sentence.
        fails_at: the number of the sentence, from 0, at which each text fails.
        error: that it fails with.
        warning: that it gives for each text.
        delay_s: what a sentence takes.

    Attributes:
        n_begun, n_said: sentences so far; `n_active`: texts that are not over.
        calls: text and keyword arguments of each call.
    """

    def __init__(
        self,
        *,
        gated: bool = False,
        audio_s: float = 0.2,
        fails_at: int | None = None,
        error: BaseException | None = None,
        warning: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.n_begun = self.n_said = self.n_active = 0
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._gated = gated
        self._audio_s = audio_s
        self._fails_at = fails_at
        self._error = error or RuntimeError("the secret is in /etc/secret")
        self._warning = warning
        self._delay_s = delay_s
        self._allowed = 0
        self._waiting: deque[asyncio.Future[None]] = deque(maxlen=1000)
        self._closed = False
        self.loop: asyncio.AbstractEventLoop | None = None

    def say(self, n: int = 1) -> None:
        """Let `n` more sentences be said; from any thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._say, n)

    def _say(self, n: int) -> None:
        self._allowed += n
        while self._allowed and self._waiting:
            if not (future := self._waiting.popleft()).done():
                self._allowed -= 1
                future.set_result(None)

    async def stream(
        self,
        text: str,
        *,
        voice: Any = None,
        params: GenerationParams | None = None,
        language: str = "en",
        pause_s: float = 0.0,
    ) -> AsyncIterator[Speech]:
        """Say a text."""
        self.calls.append((text, {"voice": voice, "params": params, "language": language}))
        self.n_active += 1
        try:
            if self._warning is not None:
                warn(self._warning, stacklevel=1)
            for i, sentence in enumerate(s for s in re.split(r"(?<=\.)\s*", text) if s):
                if self._closed:
                    raise ClosedError("closed")
                self.n_begun += 1
                await self._turn()
                if i == self._fails_at:
                    raise self._error
                self.n_said += 1
                yield self._speech(sentence, i, params)
        finally:
            self.n_active -= 1

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if self._gated and self._allowed:
            self._allowed -= 1
        elif self._gated or self._delay_s:
            future = loop.create_future()
            self._waiting.append(future)
            if not self._gated:
                loop.call_later(self._delay_s, _set, future)
            await future
        else:
            await asyncio.sleep(0)

    def _speech(self, sentence: str, number: int, params: GenerationParams | None) -> Speech:
        seed = params.seed if params is not None and params.seed is not None else 7
        return Speech(
            samples=tone(round(self._audio_s * RATE_HZ), number),
            sample_rate_hz=RATE_HZ,
            text=sentence,
            semantic_tokens=np.zeros(10, np.int64),
            coarse_tokens=np.zeros((2, 15), np.int64),
            fine_tokens=np.zeros((8, 15), np.int64),
            timings={},
            finish_reason="end",
            seed=seed + number,
        )

    def stats(self) -> EngineStats:
        """Return counts of sentences."""
        return EngineStats(
            submitted=self.n_begun,
            finished=self.n_said,
            failed=0,
            cancelled=0,
            active=self.n_active,
            preempted=0,
            audio_s=self.n_said * self._audio_s,
            busy_s=0.0,
            audio_s_per_s=0.0,
            time_to_audio_s={},
            stages={},
        )

    async def close(self, *, cancel: bool = False) -> None:
        """End; with `cancel` what waits fails."""
        self._closed = True
        while cancel and self._waiting:
            if not (future := self._waiting.popleft()).done():
                future.set_exception(ClosedError("closed"))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
