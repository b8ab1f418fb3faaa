"""Run the app: sockets, signals, the log, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from bark_fast.errors import BarkFastError, InputError
from bark_fast.server.app import create_app
from bark_fast.server.errors import ApiError, json_response
from bark_fast.server.middleware import new_request_id
from bark_fast.server.response import ABORT
from bark_fast.server.service import Service

log = logging.getLogger("bark_fast.server")

_BACKLOG = 2048
# In the system and in the transport, a connection: what lies there looks as if it had been read.
# The more there may be, the later a slow reader holds up his speech and a stalled one is found out.
_BUFFER_BYTES = 16 * 1024
_MAX_HEAD_BYTES = 64 * 1024  # of a request's line, headers and what else is not its body
_MAX_PIPELINED = 16  # requests that wait for one before them in their connection


class _Connection(HttpToolsProtocol):
    """uvicorn's own, with a small buffer, and a way to end it without waiting for its reader.

    It speaks no other protocol. Who asks to change to one, as Java's clients do for HTTP/2 with
    each request, is answered as if he had not: httptools alone would lose the request's body.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unanswered: list[RequestResponseCycle] = []
        self._n_head_bytes = 0  # of the request that is being read, but for the first to arrive

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells the last request only, not the one that those after it wait for.
        for cycle in self._unanswered:
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self.transport.is_closing():
            try:
                self._n_head_bytes += len(data)
                self.parser.feed_data(data)
                self._n_head_bytes = max(0, self._n_head_bytes)
                if self._n_head_bytes > _MAX_HEAD_BYTES:  # httptools copies all of it at each read
                    self.send_400_response(f"the head must have at most {_MAX_HEAD_BYTES} bytes")
                return
            except httptools.HttpParserUpgrade as change:
                data = self._head_without_upgrade() + data[change.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError:
                self.send_400_response("the request is no HTTP/1.1")

    def _head_without_upgrade(self) -> bytes:
        """Return the beginning of the request that is being read, as it came but for its wish."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._n_head_bytes = 0
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":  # there is no path, nor anything to begin again
            raise ValueError("this is no proxy")
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        waiting = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered = [*waiting, self.cycle]
        if len(waiting) > _MAX_PIPELINED:
            self.transport.abort()
        # uvicorn reads no more while a request waits, and would not see that the client leaves.
        self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._n_head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        response = json_response(ApiError(400, msg))
        request_id = new_request_id()
        log.info("%s: %s", request_id, msg)
        ids = [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
        headers = [*response.raw_headers, *ids]
        lines = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % header for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        port: 0 takes one that is free.

    Raises:
        InputError: that cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host must be an address of this machine, got {host!r}: {error}"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _BUFFER_BYTES)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"--host and --port must be free, got {host}:{port}: {error}") from error
    return listener


def uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    """Return how uvicorn serves an app."""
    return uvicorn.Config(
        app,
        http=_Connection,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )


def run(service: Service, listener: socket.socket, *, log_level: str = "info") -> None:
    """Serve until a signal says stop: then answers under way have `drain_s` to end; a second signal
    ends at once."""
    config = uvicorn_config(create_app(service))
    _log_to_stderr(log_level)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("listening on http://%s:%d", shown, port)
    _Server(config, service).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server that goes on answering /ready, with 503, while the last requests are finished."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        with _reloading(self._service):
            await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Nothing here may wait or write: what is interrupted may hold any lock.
        if self._service.status in ("loading", "draining"):
            os._exit(128 + sig)  # no thread is waited for that is loading, or in a step
        self._service.drain()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        log.info("stopping: %d answers are under way", self._service.n_answers)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._service.finish()
        finally:
            self.should_exit = True


@contextlib.contextmanager
def _reloading(service: Service) -> Iterator[None]:
    """Read the folder of voices again at SIGHUP, meanwhile."""
    loop = asyncio.get_running_loop()

    async def reload() -> None:
        try:
            await asyncio.to_thread(service.voices.reload)
        except BarkFastError as error:
            log.error("the voices stay as they were: %s", error)
        else:
            log.info("voices: %s", ", ".join(service.voices.names))

    tasks: set[asyncio.Task[None]] = set()

    def begin() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if not hasattr(signal, "SIGHUP"):  # Windows
        yield
        return
    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


class _Aborts(logging.Filter):
    """Drops what uvicorn says of answers that were broken off on purpose; we say why."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "without completing response" not in record.getMessage()


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bark-fast: %(message)s"))
    for name, shown in (("bark_fast.server", level.upper()), ("uvicorn.error", "WARNING")):
        logger = logging.getLogger(name)
        logger.setLevel(shown)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger("uvicorn.error").addFilter(_Aborts())
