"""The command with the demo voice: what clients leave is given up, and odd texts are said."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from helpers.serving import ServerProcess, server_process, wait_until

LONG = "This is a sentence that takes a while to say. " * 20
KINDS = [{"stream": True}, {"stream": False}, {"stream_format": "sse"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process() as server:
        yield server


def metrics(server: ServerProcess) -> dict[str, float]:
    """Return all series of which one has to know."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def is_idle(server: ServerProcess) -> bool:
    now = metrics(server)
    busy = ("bark_fast_engine_active", "bark_fast_requests_waiting")
    pages = [value for name, value in now.items() if "used_pages" in name]
    assert len(pages) == 4  # of each stage
    return not any([*pages, *(now[name] for name in busy)])


def connect(server: ServerProcess, **fields: Any) -> socket.socket:
    """Return a connection on which a request for a long text has been sent."""
    body = {"model": "tts-1", "input": LONG, "response_format": "pcm", "seed": 7, **fields}
    content = json.dumps(body).encode()
    host, port = re.fullmatch(r"http://(.*):(\d+)", server.url).groups()  # type: ignore[union-attr]
    client = socket.create_connection((host, int(port)), timeout=60)
    client.sendall(
        b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(content) + content
    )
    return client


@pytest.mark.parametrize("fields", KINDS, ids=str)
@pytest.mark.parametrize("heard", [False, True])
def test_what_a_client_leaves_is_given_up(
    server: ServerProcess, fields: dict[str, Any], heard: bool
) -> None:
    """Three clients at once, of whom some wait for the others' steps."""
    wait_until(lambda: is_idle(server), "it is busy from before")
    before = metrics(server)["bark_fast_engine_submitted_total"]
    clients = [connect(server, **fields) for _ in range(3)]
    wait_until(lambda: metrics(server)["bark_fast_engine_active"] >= 3, "nothing has begun")
    if heard and fields != {"stream": False}:
        assert clients[0].recv(1000).startswith(b"HTTP/1.1 200 OK")
    elif heard:
        enough = before + 5
        wait_until(
            lambda: metrics(server)["bark_fast_engine_submitted_total"] > enough, "no second one"
        )
    for client in clients:
        client.close()
    wait_until(lambda: is_idle(server), "it is still at work")
    begun = metrics(server)["bark_fast_engine_submitted_total"]
    # One who comes later is served, and nothing else is begun meanwhile.
    assert httpx.post(
        f"{server.url}/v1/audio/speech",
        json={"model": "tts-1", "input": "Hello.", "response_format": "pcm"},
        timeout=60,
    ).is_success
    after = metrics(server)
    assert after["bark_fast_engine_submitted_total"] == begun + 1
    assert begun - before < 3 * 20
    assert after["bark_fast_engine_failed_total"] == 0


def ask(server: ServerProcess, text: str, **fields: Any) -> httpx.Response:
    body = {"model": "tts-1", "input": text, "response_format": "pcm", "seed": 7, **fields}
    return httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=60)


QUICK = {"max_semantic_tokens": 30}


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("你好，世界。", r"'\\\\u4f60', '\\\\u597d'"),
        ("שלום עולם", r"'\\\\u05e9'"),
        ("😀🎉", r"'\\\\U0001f600', '\\\\U0001f389'"),
        ("Hello\x00 there.", ""),
        ("...", ""),
    ],
)
def test_odd_texts(server: ServerProcess, text: str, warned: str) -> None:
    response = ask(server, text, **QUICK)
    assert response.status_code == 200
    assert len(response.content) > 1000
    header = " ".join(response.headers.get_list("warning"))
    assert header.isascii()
    assert bool(header) == bool(warned)
    if warned:
        assert header.startswith("299 bark-fast \"this checkpoint's tokenizer knows too little")
        assert re.search(re.escape(warned.replace("\\\\\\\\", "\\\\")), header)


def test_a_text_without_a_token(server: ServerProcess) -> None:
    response = ask(server, "\x00")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input"


def test_a_word_of_4_kb(server: ServerProcess) -> None:
    """It is cut anywhere, and its beginning is there long before its end."""
    body = {"model": "tts-1", "input": "x" * 4096, "response_format": "pcm", **QUICK}
    with httpx.stream("POST", f"{server.url}/v1/audio/speech", json=body, timeout=60) as response:
        assert response.status_code == 200
        assert next(response.iter_raw())
    wait_until(lambda: is_idle(server), "it is still at work")


def test_health_while_it_speaks(server: ServerProcess) -> None:
    """Best of three rounds of 20, which share the cores with the engine and other programs."""
    clients = [connect(server) for _ in range(2)]
    wait_until(lambda: metrics(server)["bark_fast_engine_active"] >= 2, "nothing has begun")
    slowest_s = []
    with httpx.Client() as client:
        for _ in range(3):
            waits_s = [
                client.get(f"{server.url}/health").elapsed.total_seconds() for _ in range(20)
            ]
            slowest_s.append(sorted(waits_s)[-2])
    for each in clients:
        each.close()
    assert min(slowest_s) < 0.05, slowest_s
    wait_until(lambda: is_idle(server), "it is still at work")


def test_one_seed_is_one_speech(server: ServerProcess) -> None:
    """Whoever asks at the same time, and however it is sent."""
    answers: list[bytes] = []

    def take(**fields: Any) -> None:
        answers.append(ask(server, "One here. Two there.", **QUICK, **fields).content)

    threads = [
        threading.Thread(target=take, kwargs={"stream": i % 2 == 0}, daemon=True) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert len(answers[0]) > 10_000
