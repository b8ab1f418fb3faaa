"""From a request's text to the bytes of its audio, no faster than its reader takes them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from bark_fast.errors import collected_warnings
from bark_fast.server.admission import Ticket
from bark_fast.server.backend import Backend
from bark_fast.server.encode import SpeechEncoder
from bark_fast.server.errors import too_long
from bark_fast.server.metrics import Metrics
from bark_fast.server.options import ServerOptions
from bark_fast.server.schema import Order
from bark_fast.tempo import change_tempo
from bark_fast.types import Speech
from bark_fast.voices import VoiceLike

_T = TypeVar("_T")


class ByteQueue:
    """Bytes on the way from a writer to a reader, both in one event loop.

    Args:
        limit: it is full when it holds so many bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._n_bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether the writer has to wait."""
        return self._n_bytes >= self._limit

    def put(self, piece: bytes) -> None:
        """Add a piece; the writer waits for `room` then."""
        self._pieces.append(piece)
        self._n_bytes += len(piece)
        self._changed.set()

    def end(self) -> None:
        """Say that no more comes."""
        self._ended = True
        self._changed.set()

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.is_full:
            await self._change()

    async def get(self) -> bytes | None:
        """Return the next piece when there is one, which may be empty; None at the end."""
        while not self._pieces:
            if self._ended:
                return None
            await self._change()
        piece = self._pieces.popleft()
        self._n_bytes -= len(piece)
        self._changed.set()
        return piece

    async def _change(self) -> None:
        # The writer waits while it is full and the reader while it is empty: never both.
        self._changed.clear()
        await self._changed.wait()


class Synthesis:
    """One request's speech, being made and encoded.

    Args:
        backend: speaks.
        order: what is asked for; `voice` is its voice, found.
        ticket: of its admission; it is left to whoever made it to set it aside at the end.
        sample_rate_hz: of the backend's audio.
        arrived: the time at which the request came, of time.perf_counter.

    Attributes:
        queue: the encoded bytes; its first piece comes when there is a sentence, or all of them if
            the order is not streamed.
        seed: of the first sentence, once there is one.
        n_characters, n_semantic_tokens: of the text, and of its speech so far.
        warnings: what the library has warned of so far.
    """

    def __init__(
        self,
        backend: Backend,
        order: Order,
        voice: VoiceLike | None,
        ticket: Ticket,
        *,
        sample_rate_hz: int,
        options: ServerOptions,
        metrics: Metrics,
        arrived: float,
    ) -> None:
        self.queue = ByteQueue(options.buffer_bytes)
        self.seed: int | None = None
        self.n_characters = len(order.text)
        self.n_semantic_tokens = 0
        self.warnings: list[str] = list(order.warnings)
        self._backend = backend
        self._order = order
        self._voice = voice
        self._ticket = ticket
        self._rate = sample_rate_hz
        self._options = options
        self._metrics = metrics
        self._arrived = arrived
        self._audio_s = 0.0

    async def run(self) -> None:
        """Make all of it.

        Raises:
            BarkFastError, ApiError: it cannot be made, or not all of it.
        """
        order = self._order
        encoder = SpeechEncoder(order.response_format, self._rate, streamed=order.streamed)
        try:
            with collected_warnings(self.warnings):
                async with aclosing(self._parts()) as parts:  # type: ignore[type-var]
                    async for part in parts:
                        await self._take(part, encoder)
            await self._pass_on(await in_thread(encoder.finish))
            if self._audio_s:
                spent_s = time.perf_counter() - self._arrived
                self._metrics.real_time_factor.observe(spent_s / self._audio_s)
        finally:
            encoder.close()
            self.queue.end()

    def _parts(self) -> Any:
        order = self._order
        return self._backend.stream(
            order.text,
            voice=self._voice,
            params=order.params,
            language=order.language,
            pause_s=self._options.pause_s,
        )

    async def _take(self, part: Speech, encoder: SpeechEncoder) -> None:
        """Encode a sentence and pass it on."""
        if self.seed is None:
            self.seed = part.seed
            waited_s = time.perf_counter() - self._arrived
            self._metrics.time_to_first_audio_s.observe(waited_s)
            self._metrics.queue_wait_s.observe(max(0.0, waited_s - sum(part.timings.values())))
        self._audio_s += part.duration_s
        self.n_semantic_tokens += len(part.semantic_tokens)
        self._ticket.made(part.duration_s)
        if self._audio_s > self._options.max_audio_s:
            raise too_long(self._options.max_audio_s, "took more")

        def encode() -> bytes:
            samples = change_tempo(part.samples, part.sample_rate_hz, self._order.speed)
            return encoder.feed(samples)

        encoded = await in_thread(encode)
        if self._order.streamed:
            await self._pass_on(encoded)

    async def _pass_on(self, piece: bytes) -> None:
        """Give a piece to the reader; while it is slow, nobody else waits for this request."""
        self.queue.put(piece)
        if self.queue.is_full:
            self._ticket.set_aside()
            await self.queue.room()
            self._ticket.take_up()


async def in_thread(call: Callable[[], _T]) -> _T:
    """Call in a thread. A task that is cancelled meanwhile, however often, ends after the call, so
    that what the call uses can be closed then."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise
