"""What every request passes through: its id and count, its key, the limit of its body, and an
answer to whatever fails."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bark_fast.server.errors import ApiError, explain, json_response, too_large
from bark_fast.server.metrics import Metrics
from bark_fast.server.options import ServerOptions
from bark_fast.server.response import CLIENT_LEFT, REQUEST_ID

log = logging.getLogger("bark_fast.server")

SPEECH = "/v1/audio/speech"
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def new_request_id() -> str:
    """Return an id for a request that has brought none."""
    return f"req_{secrets.token_hex(12)}"


class Requests:
    """Gives each request an id, or keeps its own, logs it and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else new_request_id()
        scope[REQUEST_ID] = request_id
        method = scope["method"]
        if method == "HEAD":  # a GET whose body the server leaves out
            scope = {**scope, "method": "GET"}
        # By the path, for the gate refuses before there is a route.
        is_speech = method == "POST" and scope["path"].endswith(SPEECH)
        began, code = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                if is_speech and (400 <= code < CLIENT_LEFT or code == 503):
                    self._metrics.rejections.labels(str(code)).inc()
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            # Without an answer the client has left, or the server is ending.
            code = code or CLIENT_LEFT
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, _known(method), str(code)).inc()
            log.info(
                "%s: %s %s %d %.3f s",
                request_id,
                method,
                route,
                code,
                time.perf_counter() - began,
            )


class Gate:
    """Lets in those who have the key, with bodies of the size that is allowed, and answers failures
    that nobody has foreseen."""

    def __init__(self, app: ASGIApp, options: ServerOptions, open_paths: Collection[str]) -> None:
        self._app = app
        self._options = options
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await json_response(refusal)(scope, receive, send)
            return
        limit, n_bytes = self._options.max_body_bytes, 0

        async def receive_some() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > limit:
                # FastAPI passes on no other class while it reads a body.
                raise HTTPException(413, too_large(limit).message)
            return message

        started = False

        async def send_some(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive_some, send_some)
        except Exception as error:
            log.exception("%s: %s failed", scope.get(REQUEST_ID), scope["path"])
            if started:
                raise
            await json_response(explain(error, frozenset()))(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        key = self._options.api_key
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if key is not None and path.startswith("/v1/") and path not in self._open_paths:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # Headers are bytes, which arrive as Latin-1 whatever the client meant.
            right = hmac.compare_digest(given.strip(" ").encode("latin-1"), key.encode())
            if scheme.lower() != "bearer" or not right:
                return ApiError(
                    401,
                    "the header Authorization must be 'Bearer' and the server's key",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._options.max_body_bytes:
            return too_large(self._options.max_body_bytes)
        return None


def _known(method: str) -> str:
    """Return the method if it is one of HTTP's; a client can send any, and each is a series."""
    known = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
    return method if method in known else "other"
