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

import uvicorn
from starlette.types import ASGIApp

from bark_fast.errors import BarkFastError, InputError
from bark_fast.server.app import create_app
from bark_fast.server.connection import BUFFER_BYTES, Connection
from bark_fast.server.service import Service

log = logging.getLogger("bark_fast.server")

_BACKLOG = 2048


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
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BUFFER_BYTES)
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
        http=Connection,
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
