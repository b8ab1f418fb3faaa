"""Keys, bodies, methods, other origins, and the id of each request."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from bark_fast.server import create_app
from helpers.fake_backend import FakeBackend
from helpers.serving import ServerThread, server_thread

KEY = "clé à"  # in UTF-8 it ends with a byte that is a space in Latin-1
GOOD = {"model": "tts-1", "input": "One.", "response_format": "pcm"}
ORIGIN = {"origin": "https://page.example"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    options = {"api_key": KEY, "cors_origins": (ORIGIN["origin"],)}
    with server_thread(FakeBackend(audio_s=0.05), **options) as server:
        yield server


@pytest.fixture(scope="module")
def open_server() -> Iterator[ServerThread]:
    with server_thread(FakeBackend(audio_s=0.05)) as server:
        yield server


def bearer(key: str) -> dict[str, bytes]:
    return {"authorization": b"Bearer " + key.encode()}


# The key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(KEY + "x"),
        bearer(KEY[:-2]),
        {"authorization": b"Bearer"},
        bearer("密钥"),
        {"authorization": b"Bearer \xff\xfe"},
        {"authorization": KEY.encode()},
        {"authorization": b"Basic " + KEY.encode()},
        {"authorization": b""},
        {"x-api-key": KEY.encode()},
    ],
)
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/models", "/v1/nothing"])
def test_without_the_key(server: ServerThread, path: str, headers: dict[str, bytes]) -> None:
    response = httpx.post(server.url + path, json=GOOD, headers=headers)
    assert response.status_code == 401
    error = response.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert KEY not in response.text
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("headers", [bearer(KEY), {"authorization": b"bearer  " + KEY.encode()}])
def test_with_the_key(server: ServerThread, headers: dict[str, bytes]) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    response = httpx.post(f"{server.url}/v1/audio/speech", json=GOOD, headers=headers)
    assert response.status_code == 200
    assert len(response.content) == 2 * 0.05 * 24_000


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/metrics", "/v1/audio/voices", "/openapi.json"]
)
def test_open_routes(server: ServerThread, path: str) -> None:
    """They take any key too, as a client sends it with all that it asks."""
    for headers in ({}, bearer("wrong"), bearer(KEY)):
        response = httpx.get(server.url + path, headers=headers)
        assert response.status_code == 200
        assert response.headers["x-request-id"]


def test_the_key_guards_an_app_that_is_mounted_elsewhere(server: ServerThread) -> None:
    client = TestClient(create_app(server.service), root_path="/bark")
    assert client.get("/bark/v1/models").status_code == 401
    assert client.get("/bark/v1/audio/voices").status_code == 200


# Bodies ------------------------------------------------------------------------------------------


def test_a_body_over_the_limit(open_server: ServerThread) -> None:
    url = f"{open_server.url}/v1/audio/speech"
    content = b'{"input": "' + b"a" * 70_000 + b'"}'
    chunks = (content[i : i + 10_000] for i in range(0, len(content), 10_000))
    for body in (content, chunks):
        headers = {"content-type": "application/json"}
        response = httpx.post(url, content=body, headers=headers)
        assert response.status_code == 413
        assert response.json()["error"] == {
            "message": "the body must have at most 65536 bytes",
            "type": "invalid_request_error",
            "param": None,
            "code": "too_large",
        }
        assert response.headers["x-request-id"]
    assert open_server.backend.calls == []


def test_a_body_over_the_limit_is_not_asked_for(open_server: ServerThread) -> None:
    """A client that asks first (Expect: 100-continue) is refused by its content-length."""
    with socket.create_connection(("127.0.0.1", open_server.port)) as client:
        client.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
            b"content-type: application/json\r\ncontent-length: 100000\r\n\r\n"
        )
        client.settimeout(30)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body(open_server: ServerThread) -> None:
    chunks = (b'{"model": "tts-1", "inp', b'ut": "One.", "response_format"', b': "pcm"}')
    response = httpx.post(
        f"{open_server.url}/v1/audio/speech",
        content=iter(chunks),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 200
    assert "content-length" not in response.request.headers


# Methods and paths -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "PUT", "GET", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods(open_server: ServerThread, method: str) -> None:
    response = httpx.request(method, f"{open_server.url}/v1/audio/speech")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.headers["x-request-id"]
    if method != "HEAD":
        assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/v1", "/v1/audio/speech/x", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/%ff"],
)
def test_other_paths(open_server: ServerThread, path: str) -> None:
    response = httpx.get(open_server.url + path)
    assert response.status_code == 404
    assert response.json()["error"]["message"]


# Other origins -----------------------------------------------------------------------------------


def test_preflight(server: ServerThread) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = httpx.options(f"{server.url}/v1/audio/speech", headers={**ORIGIN, **asked})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    assert response.headers["x-request-id"]
    other = httpx.options(
        f"{server.url}/v1/audio/speech", headers={"origin": "https://other.example", **asked}
    )
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_a_page_can_read_errors(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the headers it would only learn that something has failed."""

    def fail() -> bytes:
        raise RuntimeError("the secret is in /etc/secret")

    monkeypatch.setattr(server.service.metrics, "render", fail)
    url = server.url
    responses = {
        400: httpx.post(f"{url}/v1/audio/speech", headers={**ORIGIN, **bearer(KEY)}),
        401: httpx.post(f"{url}/v1/audio/speech", headers=ORIGIN),
        404: httpx.get(f"{url}/nothing", headers=ORIGIN),
        413: httpx.post(
            f"{url}/v1/audio/speech", headers={**ORIGIN, **bearer(KEY)}, content=b"a" * 70_000
        ),
        500: httpx.get(f"{url}/metrics", headers=ORIGIN),
    }
    for status, response in responses.items():
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN["origin"]
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert "secret" not in response.text


def test_no_other_origin_unless_named(open_server: ServerThread) -> None:
    response = httpx.get(f"{open_server.url}/health", headers=ORIGIN)
    assert "access-control-allow-origin" not in response.headers


# Ids ---------------------------------------------------------------------------------------------


def test_request_ids(open_server: ServerThread) -> None:
    def id_of(**headers: str) -> str:
        response = httpx.get(f"{open_server.url}/health", headers=headers)
        assert len(response.headers.get_list("x-request-id")) == 1
        return response.headers["x-request-id"]

    assert id_of(**{"x-request-id": "abc-1.2_3"}) == "abc-1.2_3"
    for bad in ("", "a b", "a" * 65, "é", "a\tb"):
        assert re.fullmatch(r"req_[0-9a-f]{24}", httpx.get(
            f"{open_server.url}/health", headers={"x-request-id": bad.encode()}
        ).headers["x-request-id"])  # fmt: skip
    assert id_of() != id_of()


def test_the_log_of_what_nobody_foresaw(
    open_server: ServerThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> bytes:
        raise RuntimeError("the secret is in /etc/secret")

    monkeypatch.setattr(open_server.service.metrics, "render", fail)
    with caplog.at_level(logging.INFO, "bark_fast.server"):
        response = httpx.get(f"{open_server.url}/metrics", headers={"x-request-id": "mine"})
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "an internal error; the server's log says more",
        "type": "server_error",
        "param": None,
        "code": "error",
    }
    failed = next(record for record in caplog.records if record.levelname == "ERROR")
    assert failed.getMessage() == "mine: /metrics failed"
    assert failed.exc_info is not None
