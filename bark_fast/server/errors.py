"""Failures in the shape that OpenAI's clients read: {"error": {message, type, param, code}}."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from bark_fast.errors import BarkFastError, ClosedError, InputError, QueueFullError

_ARGUMENT = re.compile(r"(\w+) ")
_NO_JSON = "the body must be JSON (content-type: application/json), an object"
_MAX_MESSAGE = 500  # characters; errors quote what came
# What the library calls an argument that is called something else in a request.
_FIELDS = {"text": "input", "format": "response_format"}


@dataclass
class ApiError(Exception):
    """A failure to tell the client of.

    Attributes:
        status: of HTTP.
        message: in words.
        type, code: OpenAI's names of its kind.
        param: the field of the request that it is about.
        headers: to send with it.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return the JSON to send."""
        return {
            "error": {
                "message": shorten(self.message, _MAX_MESSAGE),
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def shorten(text: str, limit: int) -> str:
    """Return a text in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """A failure, as OpenAI's API tells of it."""

    error: ErrorDetail


def overloaded(reason: str, retry_after_s: int) -> ApiError:
    """Return the refusal of a request that there is no room for."""
    return ApiError(
        429,
        f"the server is busy: {reason}; try again in {retry_after_s} s",
        type="rate_limit_exceeded",
        code="queue_full",
        headers={"Retry-After": str(retry_after_s)},
    )


def too_large(limit: int) -> ApiError:
    """Return the refusal of a body of more than `limit` bytes."""
    return ApiError(413, f"the body must have at most {limit} bytes", code="too_large")


def too_long(limit_s: float, instead: str) -> ApiError:
    """Return the refusal of a text that takes longer to say than is allowed."""
    return ApiError(
        400,
        f"input must take at most {limit_s:g} s to say, and {instead}",
        code="too_long",
        param="input",
    )


def unavailable(reason: str) -> ApiError:
    """Return the refusal of a server that is not, or no more, there for anyone."""
    return ApiError(
        503,
        reason,
        type="service_unavailable",
        code="service_unavailable",
        headers={"Retry-After": "5"},
    )


def explain(error: BaseException, fields: frozenset[str]) -> ApiError:
    """Return what the client is told of an error of ours, or of any other.

    Args:
        fields: the names of a request's fields; an error that begins with one is about it.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        message, param = str(error), None
        if (match := _ARGUMENT.match(message)) is not None:
            name = _FIELDS.get(match[1], match[1])
            if name in fields:
                message, param = name + message[match.end(1) :], name
        return ApiError(400, message, param=param)
    if isinstance(error, QueueFullError):
        return overloaded(str(error), 1)
    if isinstance(error, ClosedError):
        return unavailable("the server is shutting down")
    # What exactly is for the log: it may name files, and nothing about it helps the client.
    kind = "the model failed" if isinstance(error, BarkFastError) else "an internal error"
    return ApiError(500, f"{kind}; the server's log says more", type="server_error", code="error")


def json_response(error: ApiError) -> JSONResponse:
    """Return the response of a failure."""
    return _AsciiResponse(error.body(), status_code=error.status, headers=dict(error.headers))


class _AsciiResponse(JSONResponse):
    """JSON in ASCII: what came may be no Unicode (half of a surrogate pair), and is quoted."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")


def add_handlers(app: FastAPI) -> None:
    """Let the app answer with `ApiError`s, whatever goes wrong."""

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return json_response(error)

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return json_response(_of_validation(error))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message, code = str(error.detail), None
        if error.status_code in (404, 405):
            message = f"{request.method} {request.url.path} is nothing that this server has"
        elif error.status_code == 413:
            code = "too_large"
        elif error.status_code == 400:
            message = _NO_JSON
        return json_response(
            ApiError(error.status_code, message, code=code, headers=error.headers or {})
        )

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _of_validation(error: RequestValidationError) -> ApiError:
    """Return the first thing that pydantic found wrong, in this project's words."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] in ("json_invalid", "missing", "model_attributes_type", "dict_type") and (
        not place or first["type"] == "json_invalid"
    ):
        return ApiError(400, _NO_JSON)
    param = place[0] if place else None
    if first["type"] == "missing":
        return ApiError(400, f"{'.'.join(place)} is missing", param=param, code="missing")
    shown = shorten(repr(first.get("input")), 100)
    return ApiError(400, f"{param}: {first['msg']}, got {shown}", param=param)
