"""What clients do with a connection: other protocols asked for, requests ahead of answers, HEAD."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from helpers.fake_backend import FakeBackend
from helpers.serving import ServerThread, server_thread, wait_until

# As Java's HttpClient and `curl --http2` ask.
H2C = (
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
    b"http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)
WEBSOCKET = (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
BODY = json.dumps({"model": "tts-1", "input": "One. Two.", "response_format": "pcm"}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with server_thread(FakeBackend(audio_s=0.05)) as server:
        yield server


def speech(headers: bytes = b"", *, chunked: bool = False) -> bytes:
    """Return a request for speech."""
    length, body = b"content-length: %d" % len(BODY), BODY
    if chunked:
        length, body = b"transfer-encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    return (
        b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + headers + length + b"\r\n\r\n" + body
    )  # fmt: skip


def talk(server: ServerThread, *pieces: bytes) -> bytes:
    """Send pieces, and then a request after whose answer the server closes; return all answers."""
    last = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (*pieces, last):
            client.sendall(piece)
            time.sleep(0.005)  # mostly read apart; together they must do too
        answers = b""
        while piece := client.recv(1 << 16):
            answers += piece
    return answers


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("wish", [H2C, WEBSOCKET])
def test_who_asks_for_another_protocol_is_answered_in_this_one(
    server: ServerThread, wish: bytes, chunked: bool
) -> None:
    request = speech(wish, chunked=chunked)
    for cut in (0, 3, 30, request.index(b"upgrade"), request.index(b"\r\n\r\n") + 4, -5):
        before = len(server.backend.calls)
        answers = talk(server, request[:cut], request[cut:] + HEALTH, request)
        assert answers.count(OK) == answers.count(b"HTTP/1.1 ") == 4
        assert [text for text, _ in server.backend.calls[before:]] == ["One. Two."] * 2


def test_a_client_like_java(server: ServerThread) -> None:
    wish = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEA"}
    with httpx.Client() as client:
        for _ in range(3):
            headers = {**wish, "content-type": "application/json"}
            answer = client.post(f"{server.url}/v1/audio/speech", content=BODY, headers=headers)
            assert len(answer.content) == 2 * 2 * 0.05 * 24_000


@pytest.mark.parametrize(
    "request_",
    [b"GARBAGE\r\n\r\n", b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", b"GET x HTTP/9.9\r\n\r\n"],
)
def test_what_is_no_http(server: ServerThread, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(request_)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-length: %d" % len(body) in head
    assert b"x-request-id: req_" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("where", ["line", "name", "header", "headers", "trailer"])
def test_a_head_without_an_end(server: ServerThread, where: str) -> None:
    """It is refused before it costs memory or time; httptools has no bound of its own."""
    begin, piece = {
        "line": (b"GET /", b"a" * 4096),
        "name": (b"GET / HTTP/1.1\r\n", b"a" * 4096),
        "header": (b"GET / HTTP/1.1\r\nx: ", b"a" * 4096),
        "headers": (b"GET / HTTP/1.1\r\n", b"x: a\r\n" * 700),
        "trailer": (speech(chunked=True)[:-2], b"x: a\r\n" * 700),
    }[where]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(begin)
        refused = False
        for _ in range(2500):
            try:
                client.sendall(piece)
            except ConnectionError:
                refused = True
                break
        assert refused
    wait_until(lambda: server.n_connections <= 1, "its connection is open")  # but for httpx's


def test_long_heads_that_end(server: ServerThread) -> None:
    for n in (10_000, 60_000):
        request = speech(b"x: " + b"a" * n + b"\r\n")
        pieces = [request[i : i + 9000] for i in range(0, len(request), 9000)]
        assert talk(server, *pieces, *pieces).count(OK) == 3


def test_requests_ahead_of_answers_are_answered_in_order() -> None:
    backend = FakeBackend(gated=True, audio_s=0.05)
    with server_thread(backend) as server, socket.create_connection(
        ("127.0.0.1", server.port), timeout=60
    ) as client:  # fmt: skip
        client.sendall(speech())
        wait_until(lambda: backend.n_begun == 1, "nothing has begun")
        client.sendall(HEALTH * 3)
        backend.say(2)
        answers = b""
        while answers.count(b'{"status":"ok"}') < 3:
            answers += client.recv(1 << 16)
    assert answers.index(b"audio/pcm") < answers.index(b"application/json")
    assert answers.count(OK) == 4


@pytest.mark.parametrize("said", [0, 1])
def test_who_leaves_with_requests_ahead(said: int) -> None:
    backend = FakeBackend(gated=True)
    with server_thread(backend) as server:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        client.sendall(speech())
        wait_until(lambda: backend.n_begun == 1, "nothing has begun")
        backend.say(said)
        wait_until(lambda: backend.n_begun == 1 + said, "the next has not begun")
        client.sendall(HEALTH)
        time.sleep(0.2)  # it is read meanwhile, mostly; if it is not the test is easier to pass
        client.close()
        wait_until(lambda: backend.n_active == 0, "the backend is still at work")
        wait_until(server.is_idle, "the request is still counted")


def test_too_many_requests_ahead() -> None:
    backend = FakeBackend(gated=True)
    with server_thread(backend) as server:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        client.sendall(speech())
        wait_until(lambda: backend.n_begun == 1, "nothing has begun")
        client.sendall(HEALTH * 100)
        wait_until(server.is_idle, "the request is still counted")
        client.close()


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/models", "/v1/audio/voices"])
def test_head_is_get_without_its_body(server: ServerThread, path: str) -> None:
    """Programs that watch servers ask so (`wget --spider`)."""
    got, head = httpx.get(server.url + path), httpx.head(server.url + path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    for name in ("content-type", "content-length"):
        assert head.headers[name] == got.headers[name]
    metrics = httpx.get(f"{server.url}/metrics").text
    assert (
        f'bark_fast_http_requests_total{{code="200",method="HEAD",route="{path}"}} 1.0' in metrics
    )


def test_what_a_proxy_needs(server: ServerThread) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=json.loads(BODY))
    assert answer.headers["x-accel-buffering"] == "no"
    # A redirection would name an address that the proxy's clients cannot reach.
    missing = httpx.get(f"{server.url}/health/")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "GET /health/ is nothing that this server has"
