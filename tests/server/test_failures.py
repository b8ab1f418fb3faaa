"""A failure before the first sentence is a real status; a later one is never a clean end."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any

import httpx
import pytest

from bark_fast.errors import ClosedError, InputError, ModelError
from helpers.fake_backend import FakeBackend
from helpers.serving import ServerThread, server_thread

TEXT = "One. Two. Three. Four."
N_BYTES = 2 * 4800  # of a sentence of 0.2 s, as pcm


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tts-1", "input": TEXT, "response_format": "pcm", **fields}


def post(server: ServerThread, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/audio/speech", json=body(**fields))


def read(server: ServerThread, **fields: Any) -> tuple[httpx.Response, bytes, bool]:
    """Return a response, what came of it, and whether it ended cleanly."""
    came = b""
    with httpx.stream("POST", f"{server.url}/v1/audio/speech", json=body(**fields)) as response:
        try:
            for piece in response.iter_raw():
                came += piece
        except httpx.RemoteProtocolError:
            return response, came, False
    return response, came, True


def events_of(content: bytes) -> list[dict[str, Any]]:
    """Return the server-sent events of a whole body."""
    assert content.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in content.split(b"\n\n") if event]


@pytest.mark.parametrize("fields", [{}, {"stream": False}, {"stream_format": "sse"}], ids=str)
@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("the secret is in /etc/secret"), 500, "an internal error"),
        (TimeoutError("the secret"), 500, "an internal error"),
        (ModelError("the secret"), 500, "the model failed"),
        (MemoryError("the secret"), 500, "an internal error"),
        (InputError("text must hold something, got 'One.'"), 400, "input must hold something"),
        (ClosedError("the secret"), 503, "the server is shutting down"),
    ],
    ids=repr,
)
def test_at_the_first_sentence(
    error: Exception,
    status: int,
    message: str,
    fields: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FakeBackend(fails_at=0, error=error)
    with caplog.at_level(logging.INFO, "bark_fast.server"), server_thread(backend) as server:
        response = post(server, **fields)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    told = response.json()["error"]
    assert message in told["message"]
    assert told["param"] == ("input" if status == 400 else None)
    assert "secret" not in response.text
    logged = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == (1 if status == 500 else 0)
    for record in logged:
        assert record.getMessage().startswith(response.headers["x-request-id"])


def test_at_the_third_sentence_of_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "bark_fast.server"),
        server_thread(FakeBackend(fails_at=2)) as server,
    ):
        response, came, clean = read(server)
        metrics = httpx.get(f"{server.url}/metrics").text
        # The next one on a new connection is not harmed.
        assert post(server, input="One. Two.").content == came
    assert response.status_code == 200
    assert not clean
    assert len(came) == 2 * N_BYTES
    assert 'bark_fast_broken_off_total{why="failed"} 1.0' in metrics
    request_id = response.headers["x-request-id"]
    ours = [record for record in caplog.records if record.name == "bark_fast.server"]
    messages = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    assert messages == [
        f"{request_id}: speech failed",
        f"{request_id}: the answer was broken off: an internal error; the server's log says more",
    ]


def test_at_the_third_sentence_of_events() -> None:
    with server_thread(FakeBackend(fails_at=2)) as server:
        response, came, _ = read(server, stream_format="sse")
    events = events_of(came)
    assert [event["type"] for event in events] == [
        "speech.audio.delta", "speech.audio.delta", "speech.audio.delta", "speech.audio.delta",
        "error",
    ]  # fmt: skip
    assert events[-1]["error"]["message"] == "an internal error; the server's log says more"
    assert b"secret" not in came
    assert response.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": False, "stream_format": "sse"}])
def test_at_the_third_sentence_of_what_is_sent_whole(fields: dict[str, Any]) -> None:
    with server_thread(FakeBackend(fails_at=2)) as server:
        response = post(server, **fields)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"


def test_a_text_that_takes_too_long() -> None:
    """One that is estimated to is refused; one that does is broken off."""
    with server_thread(FakeBackend(audio_s=1.0), max_audio_s=2.5) as server:
        refused = post(server, input="word " * 40)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_long")
        assert server.backend.calls == []
        whole = post(server, stream=False)
        assert (whole.status_code, whole.json()["error"]["code"]) == (400, "too_long")
        _, came, clean = read(server)
        assert (len(came), clean) == (2 * 48_000, False)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'bark_fast_broken_off_total{why="too_long"} 1.0' in metrics


def exchange(server: ServerThread, version: bytes, fields: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return head and body of a response, with all that is sent until the connection ends."""
    content = json.dumps(body(**fields)).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(
            b"POST /v1/audio/speech HTTP/" + version + b"\r\nhost: x\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content
        )
        came = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, rest = came.partition(b"\r\n\r\n")
    return head, rest


@pytest.mark.parametrize("fields", [{}, {"stream_format": "sse"}])
def test_http_1_0_knows_no_chunks(fields: dict[str, Any]) -> None:
    """It gets the whole with its length, so that half of it is seen to be half."""
    with server_thread(FakeBackend()) as server:
        head, rest = exchange(server, b"1.0", fields)
        assert b"transfer-encoding" not in head
        assert b"content-length: %d\r\n" % len(rest) in head
        if fields:
            assert events_of(rest)[-1]["type"] == "speech.audio.done"
        else:
            assert len(rest) == 4 * N_BYTES
        chunked, _ = exchange(server, b"1.1", fields)
        assert b"transfer-encoding: chunked" in chunked
    with server_thread(FakeBackend(fails_at=2)) as server:
        head, _ = exchange(server, b"1.0", fields)
        assert head.startswith(b"HTTP/1.1 500 ")


def test_warnings_are_headers() -> None:
    """In ASCII, on one line, and no longer or more than clients take."""
    warning = 'no \n"你\\好"\x00 ' + "x" * 5000
    with server_thread(FakeBackend(warning=warning)) as server:
        response = post(server, instructions="Whisper.")
        assert response.status_code == 200
        first, second = response.headers.get_list("warning")
        assert first == '299 bark-fast "instructions are not followed: Bark takes none"'
        assert second.startswith('299 bark-fast "no  \\"\\\\u4f60\\\\\\\\u597d\\"  xxx')
        assert second.isascii()
        assert len(second) < 400
        assert "warning" not in post(server, input="One.", instructions="").headers or (
            len(post(server, input="One.").headers.get_list("warning")) == 1
        )
