"""A client that leaves, whenever and however, frees its work; a backend that says a sentence when
the test allows it makes each moment last."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import httpx
import pytest

from helpers.fake_backend import FakeBackend
from helpers.serving import ServerThread, server_thread, wait_until

KINDS = [
    {"stream": True},
    {"stream": False},
    {"stream_format": "sse"},
    {"stream": False, "stream_format": "sse"},
]
TEXT = "One. Two. Three. Four. Five. Six."


def client_of(server: ServerThread, **fields: Any) -> socket.socket:
    """Return a connection on which a request for speech has been sent."""
    fields = {"model": "tts-1", "input": TEXT, "response_format": "pcm", **fields}
    content = json.dumps(fields).encode()
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(
        b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(content) + content
    )
    return client


def leave(client: socket.socket, how: str) -> None:
    if how == "reset":  # as a process that is killed with bytes unread
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def metric(server: ServerThread, line: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    found = [each for each in text.splitlines() if each.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def assert_freed(server: ServerThread) -> None:
    """Check that nothing is counted any more, and that nothing is begun, whatever is allowed."""
    backend = server.backend
    wait_until(lambda: backend.n_active == 0, "the backend is still at work")
    wait_until(server.is_idle, "the request is still counted")
    begun = backend.n_begun
    backend.say(10)
    # A request that is served after that has met an event loop that had time for all else.
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert backend.n_begun == begun
    wait_until(lambda: server.n_connections <= 1, "its connection is open")  # but for httpx's


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_before_the_first_byte(fields: dict[str, Any], how: str) -> None:
    with server_thread(FakeBackend(gated=True)) as server:
        client = client_of(server, **fields)
        wait_until(lambda: server.backend.n_begun == 1, "nothing has begun")
        assert server.service.admission.n_requests == server.service.n_answers == 1
        leave(client, how)
        assert_freed(server)
        assert metric(server, 'bark_fast_disconnects_total{when="before_audio"}') == 1
        code = 'code="499",method="POST",route="/v1/audio/speech"'
        assert metric(server, f"bark_fast_http_requests_total{{{code}}}") == 1


@pytest.mark.parametrize("fields", [kind for kind in KINDS if "stream" in kind], ids=str)
def test_a_whole_answer_half_made(fields: dict[str, Any]) -> None:
    fields = {**fields, "stream": False}
    with server_thread(FakeBackend(gated=True)) as server:
        client = client_of(server, **fields)
        wait_until(lambda: server.backend.n_begun == 1, "nothing has begun")
        server.backend.say(2)
        wait_until(lambda: server.backend.n_begun == 3, "the third has not begun")
        leave(client, "close")
        assert_freed(server)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("fields", [KINDS[0], KINDS[2]], ids=str)
def test_in_the_middle_of_a_stream(fields: dict[str, Any], how: str) -> None:
    with server_thread(FakeBackend(gated=True)) as server:
        client = client_of(server, **fields)
        wait_until(lambda: server.backend.n_begun == 1, "nothing has begun")
        server.backend.say(2)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        wait_until(lambda: server.backend.n_begun == 3, "the third has not begun")
        leave(client, how)
        assert_freed(server)
        assert metric(server, 'bark_fast_disconnects_total{when="streaming"}') == 1
        assert metric(server, 'bark_fast_disconnects_total{when="before_audio"}') == 0


def test_while_its_speech_waits_for_it() -> None:
    """Nothing has been read and all buffers are full: what waits is the writer."""
    backend = FakeBackend(audio_s=10.0)
    with server_thread(backend, buffer_bytes=1000) as server:
        client = client_of(server, input="One. " * 40)
        wait_until(lambda: server.service.n_answers == 1, "it has not begun")
        wait_until(lambda: server.service.admission.n_requests == 0, "it was not set aside")
        assert server.service.n_answers == 1
        assert backend.n_said < 40
        leave(client, "close")
        assert_freed(server)


def test_while_the_body_is_sent() -> None:
    with server_thread(FakeBackend()) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"input"'
        )
        wait_until(lambda: server.n_connections == 1, "it is not connected")
        leave(client, "close")
        wait_until(lambda: server.n_connections == 0, "its connection is open")
        assert server.is_idle()


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_at_the_moment_of_the_first_byte(fields: dict[str, Any]) -> None:
    """Whichever of the two the server notices first."""
    backend = FakeBackend(gated=True, audio_s=0.01)
    with server_thread(backend) as server:
        for i in range(20):
            client = client_of(server, input="One.", **fields)
            wait_until(lambda i=i: backend.n_begun == i + 1, "nothing has begun")
            backend.say()
            leave(client, "reset" if i % 2 else "close")
            wait_until(server.is_idle, "the request is still counted")
        assert_freed(server)
        left = sum(
            metric(server, f'bark_fast_disconnects_total{{when="{when}"}}')
            for when in ("before_audio", "streaming")
        )
        assert left <= 20


def test_those_who_stay_are_not_counted_as_gone() -> None:
    with server_thread(FakeBackend()) as server, httpx.Client() as client:
        for fields in KINDS * 10:
            body = {"model": "tts-1", "input": TEXT, "response_format": "pcm", **fields}
            assert client.post(f"{server.url}/v1/audio/speech", json=body).status_code == 200
        for when in ("before_audio", "streaming"):
            assert metric(server, f'bark_fast_disconnects_total{{when="{when}"}}') == 0
