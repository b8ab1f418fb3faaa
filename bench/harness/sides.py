"""The two sides of `python -m bench serve --http`: speech from the library, and through HTTP.

Both get the same requests at the same times. The library runs in a process of its own, with whoever
asks for speech in the same event loop, as in a program that imports it. The server is `bark-fast
serve` in a process of its own, and its clients run in a third.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bark_fast import AsyncBark, Bark, EngineOptions, GenerationParams
from bench.harness.engines import EngineSettings

PAUSE_S = 0.25  # between sentences: what the server does unless it is told otherwise


@dataclass(frozen=True)
class Order:
    """What is asked for: a text, a voice's name, the server's `response_format`, and the fields of
    GenerationParams."""

    text: str
    voice: str
    response_format: str
    params: dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """How one order was served.

    Attributes:
        first_audio_s, latency_s: from its time of arrival to its first audio, and to its end.
        n_bytes: of audio.
    """

    first_audio_s: float
    latency_s: float
    n_bytes: int


@dataclass(frozen=True)
class Served:
    """How all orders were served.

    Attributes:
        seconds: from the first arrival to the last audio.
    """

    heard: list[Heard]
    seconds: float


# Returns the time of the first audio, by time.perf_counter, and the number of bytes.
Speak = Callable[[Order], Awaitable[tuple[float, int]]]


async def play(speak: Speak, orders: Sequence[Order], arrivals: Sequence[float]) -> Served:
    """Place each order at its time of arrival, and wait for all."""
    start = time.perf_counter()

    async def one(order: Order, arrival: float) -> Heard:
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        first, n_bytes = await speak(order)
        now = time.perf_counter()
        return Heard(first - start - arrival, now - start - arrival, n_bytes)

    heard = await asyncio.gather(*(one(*each) for each in zip(orders, arrivals, strict=True)))
    return Served(list(heard), time.perf_counter() - start)


class Library:
    """Speaks through AsyncBark; for a `Worker`."""

    def __init__(self, options: EngineSettings) -> None:
        options.begin()
        self._bark = Bark.from_pretrained(
            options.checkpoint,
            device=options.device,
            dtype=options.dtype,
            engine=EngineOptions(max_batch_size=options.max_batch),
            local_files_only=True,
        )
        self._bark.warm_up()

    def run(self, orders: Sequence[Order], arrivals: Sequence[float]) -> Served:
        """Serve all orders."""
        return asyncio.run(self._run(orders, arrivals))

    async def _run(self, orders: Sequence[Order], arrivals: Sequence[float]) -> Served:
        speaker = AsyncBark(self._bark, max_pending=2**30)

        async def speak(order: Order) -> tuple[float, int]:
            first, n_samples = 0.0, 0
            async for part in speaker.stream(order.text, **_arguments(order)):
                first = first or time.perf_counter()
                n_samples += len(part.samples)
            return first, 2 * n_samples

        return await play(speak, orders, arrivals)

    def first_audio_s(self, order: Order, *, in_tasks: bool) -> float:
        """Return the seconds until the first audio, and break off then.

        Args:
            in_tasks: with AsyncBark, not Bark.
        """
        start = time.perf_counter()
        if in_tasks:
            asyncio.run(self._first_part(order))
            seconds = time.perf_counter() - start
        else:
            parts = self._bark.stream(order.text, **_arguments(order))
            next(parts)
            seconds = time.perf_counter() - start
            parts.close()
        while self._bark.engine.has_work:  # what comes next must not find this still going on
            time.sleep(0.01)
        return seconds

    async def _first_part(self, order: Order) -> None:
        parts = AsyncBark(self._bark).stream(order.text, **_arguments(order))
        async with contextlib.aclosing(parts):  # type: ignore[type-var]
            await anext(parts)

    def cpu_s(self) -> float:
        """Return the CPU time of this process so far, in seconds."""
        return time.process_time()


def _arguments(order: Order) -> dict[str, Any]:
    return {
        "voice": order.voice,
        "params": GenerationParams(**order.params),
        "pause_s": PAUSE_S,
    }


class Clients:
    """Clients of a server at a port of this machine; for a `Worker`.

    They write and read bytes, no more: what a client library does is not what the server costs.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def run(self, orders: Sequence[Order], arrivals: Sequence[float]) -> Served:
        """Let a client for each order ask for it, and read the answer to its end."""
        return asyncio.run(play(self._speak, orders, arrivals))

    def first_audio_s(self, order: Order) -> float:
        """Return the seconds until the first audio, and leave then."""
        start = time.perf_counter()
        return asyncio.run(self._first(order)) - start

    async def _speak(self, order: Order) -> tuple[float, int]:
        reader, writer = await self._ask(order)
        try:
            first, n_bytes = 0.0, 0
            while n := await _chunk(reader):
                first = first or time.perf_counter()
                n_bytes += n
            return first, n_bytes
        finally:
            writer.close()

    async def _first(self, order: Order) -> float:
        reader, writer = await self._ask(order)
        try:
            await _chunk(reader)
            return time.perf_counter()
        finally:
            writer.close()

    async def _ask(self, order: Order) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request, and read the answer's header.

        Raises:
            RuntimeError: it is refused.
        """
        body = json.dumps(
            {
                "model": "tts-1",
                "input": order.text,
                "voice": order.voice,
                "response_format": order.response_format,
                **order.params,
            }
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            b"POST /v1/audio/speech HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        header = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in header.partition(b"\r\n")[0]:
            writer.close()
            raise RuntimeError(f"the server answered {header.decode('latin-1')}")
        return reader, writer


async def _chunk(reader: asyncio.StreamReader) -> int:
    """Read a chunk of a chunked body; return its length, 0 for the one that ends it."""
    n = int(await reader.readuntil(b"\r\n"), 16)
    await reader.readexactly(n + 2)
    return n
