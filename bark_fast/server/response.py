"""The answer to a request for speech, which stops the work as soon as nobody takes it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from bark_fast.server.encode import CONTENT_TYPES
from bark_fast.server.errors import explain, shorten
from bark_fast.server.metrics import Metrics
from bark_fast.server.options import ServerOptions
from bark_fast.server.schema import FIELDS, Order
from bark_fast.server.synthesis import Synthesis

log = logging.getLogger("bark_fast.server")

_PIECE_BYTES = 8 * 1024  # of a message; a reader that takes one is alive
_MAX_WARNINGS, _MAX_WARNING = 8, 300  # and characters of each: clients bound what headers may hold
CLIENT_LEFT = 499  # the code, of nginx, for an answer that nobody waited for
# In the scope: the id, and what ends the connection at once, where the server can.
REQUEST_ID, ABORT = "bark_fast.request_id", "bark_fast.abort"


class _StalledError(Exception):
    """The reader takes nothing."""


class SpeechResponse(Response):
    """Sends speech while it is made.

    No status is sent before there is a sentence, so that a failure until then is a real one. A
    later one breaks the connection off, or is an event; it is never a clean end.

    Args:
        synthesis: makes the bytes.
        order: what was asked for.
        at_end: called when it is over, whatever happened.
    """

    def __init__(
        self,
        synthesis: Synthesis,
        order: Order,
        options: ServerOptions,
        metrics: Metrics,
        at_end: Callable[[], None],
    ) -> None:
        super().__init__()
        self._synthesis = synthesis
        self._order = order
        self._options = options
        self._metrics = metrics
        self._at_end = at_end
        self._started = False
        self._ended = False
        self._request_id = ""
        self._abort: Callable[[], None] = _nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request_id = scope.get(REQUEST_ID, "")
        self._abort = scope.get(ABORT, _nothing)
        making = asyncio.create_task(self._synthesis.run())
        sending = asyncio.create_task(self._send_all(send, making))
        # Starlette's own watcher does not listen from ASGI 2.4 on.
        leaving = asyncio.create_task(_wait_until_left(receive))
        tasks = (making, sending, leaving)
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                if (error := sending.exception()) is not None:
                    await self._fail(error, send)
            elif not self._ended:  # an answer that has ended looks like a client that has left
                when = "streaming" if self._started else "before_audio"
                self._metrics.disconnects.labels(when).inc()
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                self._at_end()

    async def _send_all(self, send: Send, making: asyncio.Task[None]) -> None:
        """Send what is made until its end.

        Raises:
            Exception: it could not be made.
            _StalledError: the reader takes nothing.
        """
        streamed, kept = self._order.streamed, bytearray()
        while (piece := await self._synthesis.queue.get()) is not None:
            if streamed and not self._started:
                await self._start(send)
            for message in self._messages(piece):
                if streamed:
                    await self._send(send, message)
                else:
                    kept += message
        await making
        ending = b""
        if self._order.events:
            ending = self._event("speech.audio.done", usage=self._usage())
        if not streamed:
            whole = bytes(kept + ending)
            await self._start(send, n_bytes=len(whole))
            for start in range(0, len(whole), _PIECE_BYTES):
                await self._send(send, whole[start : start + _PIECE_BYTES])
            ending = b""
        await self._send(send, ending, more=False)

    async def _start(self, send: Send, n_bytes: int | None = None) -> None:
        order = self._order
        kind = "text/event-stream" if order.events else CONTENT_TYPES[order.response_format]
        # Otherwise nginx keeps an answer until it is whole.
        headers = {
            "content-type": kind,
            "cache-control": "no-store",
            "x-accel-buffering": "no",
        }
        if self._synthesis.seed is not None:
            headers["x-seed"] = str(self._synthesis.seed)
        if n_bytes is not None:
            headers["content-length"] = str(n_bytes)
        raw = [(name.encode(), value.encode("ascii")) for name, value in headers.items()]
        raw += [(b"warning", _as_header(w)) for w in self._synthesis.warnings[:_MAX_WARNINGS]]
        self._started = True
        message: Message = {"type": "http.response.start", "status": 200, "headers": raw}
        await self._within_time(send(message))

    def _messages(self, piece: bytes) -> Iterator[bytes]:
        for start in range(0, len(piece), _PIECE_BYTES):
            part = piece[start : start + _PIECE_BYTES]
            if self._order.events:
                yield self._event("speech.audio.delta", audio=base64.b64encode(part).decode())
            else:
                yield part

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        message: Message = {"type": "http.response.body", "body": body, "more_body": more}
        self._ended = not more
        await self._within_time(send(message))

    async def _within_time(self, sent: Awaitable[None]) -> None:
        # Not asyncio.wait_for, which makes a task of every message.
        task, stalled = asyncio.current_task(), False
        assert task is not None

        def give_up() -> None:
            nonlocal stalled
            stalled = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._options.stall_s, give_up)
        try:
            await sent
        except asyncio.CancelledError:
            if stalled:
                raise _StalledError("the reader takes nothing") from None
            raise
        finally:
            timer.cancel()

    async def _fail(self, error: BaseException, send: Send) -> None:
        """Tell the client of a failure, as far as that can still be done."""
        if isinstance(error, _StalledError):
            self._broken_off("stalled", str(error))
            self._abort()  # closing would wait until all is read
            return
        told = explain(error, FIELDS)
        if told.status == 500:
            log.error("%s: speech failed", self._request_id, exc_info=error)
        if not self._started:
            raise told from error
        kinds = {"too_long": "too_long", "service_unavailable": "closed"}
        self._broken_off(kinds.get(told.code or "", "failed"), told.message)
        if self._order.events:
            with contextlib.suppress(_StalledError):
                await self._send(send, self._event("error", **told.body()), more=False)

    def _broken_off(self, why: str, message: str) -> None:
        """Take note of an answer without an end, whose connection uvicorn closes."""
        self._metrics.broken_off.labels(why).inc()
        log.warning("%s: the answer was broken off: %s", self._request_id, message)

    def _event(self, kind: str, **content: Any) -> bytes:
        """Return a server-sent event."""
        return b"data: " + json.dumps({"type": kind, **content}).encode("ascii") + b"\n\n"

    def _usage(self) -> dict[str, int]:
        """Return what OpenAI counts: here characters in, semantic tokens out."""
        n_in, n_out = self._synthesis.n_characters, self._synthesis.n_semantic_tokens
        return {"input_tokens": n_in, "output_tokens": n_out, "total_tokens": n_in + n_out}


def _nothing() -> None:
    pass


async def _wait_until_left(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _as_header(text: str) -> bytes:
    """Return a warning as the header `Warning` has it (RFC 7234), in ASCII."""
    plain = shorten(text.encode("ascii", "backslashreplace").decode(), _MAX_WARNING)
    plain = "".join(c if c.isprintable() else " " for c in plain)
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 bark-fast "{quoted}"'.encode()
