"""A client's connection, as uvicorn and httptools have it, but for what odd clients would break."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from bark_fast.server.errors import ApiError, json_response
from bark_fast.server.middleware import new_request_id
from bark_fast.server.response import ABORT

log = logging.getLogger("bark_fast.server")

# In the system and in the transport, a connection: what lies there looks as if it had been read.
# The more there may be, the later a slow reader holds up his speech and a stalled one is found out.
BUFFER_BYTES = 16 * 1024
_MAX_HEAD_BYTES = 64 * 1024  # of a request's line, headers and what else is not its body
_MAX_PIPELINED = 16  # requests that wait for one before them in their connection


class Connection(HttpToolsProtocol):
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
        transport.set_write_buffer_limits(high=BUFFER_BYTES)

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
