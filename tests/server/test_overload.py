"""Many clients, slow ones, and those that stop reading."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
from typing import Any

import httpx

from bark_fast.server import ServerOptions
from helpers.fake_backend import RATE_HZ, FakeBackend
from helpers.serving import ServerThread, fake_process, server_thread, wait_until

SHORT = {"model": "tts-1", "input": "One. Two.", "response_format": "pcm"}


async def _ask_all(url: str, n: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=n)
    async with httpx.AsyncClient(limits=limits, timeout=120) as client:
        return await asyncio.gather(
            *(client.post(f"{url}/v1/audio/speech", json=SHORT) for _ in range(n))
        )


def test_two_hundred_at_once() -> None:
    """Each is served or told when to come again, and the server stays responsive: 95 of 100 looks
    at /health take less than 50 ms more than at a server of which nobody wants anything. (What both
    take is the machine's and the clients', and the best of three rounds counts.)"""
    with fake_process(max_requests=8, delay_s=0.05) as server, fake_process() as idle:
        excess_s = []
        for _ in range(3):
            waits_s: dict[str, list[float]] = {server.url: [], idle.url: []}

            async def watch(waits_s: dict[str, list[float]] = waits_s) -> list[httpx.Response]:
                asking = asyncio.create_task(_ask_all(server.url, 200))
                while not asking.done():
                    await asyncio.to_thread(_time_health, waits_s)
                return await asking

            responses = asyncio.run(watch())
            codes = [response.status_code for response in responses]
            assert set(codes) <= {200, 429}
            assert codes.count(200) >= 8
            for response in responses:
                if response.status_code == 429:
                    assert 1 <= int(response.headers["retry-after"]) <= 120
                    assert response.json()["error"]["type"] == "rate_limit_exceeded"
                    assert response.headers["x-request-id"]
                else:
                    assert len(response.content) == 2 * 2 * 0.2 * RATE_HZ
            loaded_s, idle_s = (
                statistics.quantiles(waits_s[url], n=20)[-1] for url in (server.url, idle.url)
            )
            excess_s.append(loaded_s - idle_s)
            if excess_s[-1] < 0.05:
                break
        assert min(excess_s) < 0.05, excess_s
        metrics = httpx.get(f"{server.url}/metrics").text
        assert "bark_fast_requests_waiting 0.0" in metrics
        assert "bark_fast_queued_audio_seconds 0.0" in metrics


def _time_health(waits_s: dict[str, list[float]]) -> None:
    with httpx.Client() as client:
        for _ in range(20):
            for url, waits in waits_s.items():
                began = time.perf_counter()
                assert client.get(f"{url}/health").status_code == 200
                waits.append(time.perf_counter() - began)


def test_the_bound_on_queued_audio() -> None:
    """The second of two that are estimated at 200 s is one too many; one that is alone is not."""
    text = "word " * 560
    with server_thread(FakeBackend(gated=True), max_queued_audio_s=150) as server:
        url = f"{server.url}/v1/audio/speech"
        first = _client(server, input=text)
        wait_until(lambda: server.service.admission.n_requests == 1, "the first is not there")
        refused = httpx.post(url, json={**SHORT, "input": text})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "120"
        first.close()


def test_a_reader_of_1_kb_per_s_beside_fast_ones() -> None:
    """His speech waits for him, counted no more; the only place is free for others."""
    backend = FakeBackend(audio_s=5.0)
    options = {"max_requests": 1, "buffer_bytes": 100_000}
    with server_thread(backend, **options) as server:
        slow = _client(server, input="One. " * 40)
        came = len(slow.recv(1024))
        wait_until(lambda: server.service.admission.n_requests == 0, "it was not set aside")
        for _ in range(5):
            time.sleep(0.2)
            came += len(slow.recv(205))
            response = httpx.post(f"{server.url}/v1/audio/speech", json=SHORT)
            assert response.status_code == 200
        wait_until(lambda: server.service.n_answers == 1, "he alone is left")
        # What is made ahead of him is bounded: pieces of 240 KB, of 9.6 MB in all.
        assert backend.n_said < 5 * 2 + 10
        slow.settimeout(60)
        while came < 9_600_000:  # and he gets all of it in the end
            came += len(slow.recv(1 << 20))
        wait_until(server.is_idle, "it is not over")


def test_a_slow_reader_is_not_taken_for_a_stalled_one() -> None:
    """One of 20 KB/s and 6 s is one of 1 KB/s and the default, 120 s, but for the time it takes."""
    assert ServerOptions().stall_s == 120
    with server_thread(FakeBackend(audio_s=5.0), stall_s=6.0) as server:
        slow = _client(server, input="One. " * 20)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            time.sleep(0.05)
            assert slow.recv(1024)
        assert server.service.n_answers == 1
        assert 'why="stalled"' not in httpx.get(f"{server.url}/metrics").text
        slow.close()


def test_a_reader_that_stalls_is_given_up() -> None:
    backend = FakeBackend(audio_s=5.0)
    with server_thread(backend, stall_s=0.5) as server:
        stalled = _client(server, input="One. " * 40)
        wait_until(lambda: server.service.n_answers == 1, "it has not begun")
        wait_until(server.is_idle, "it is not given up")
        wait_until(lambda: server.n_connections == 0, "its connection is open")
        assert backend.n_active == 0
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'bark_fast_broken_off_total{why="stalled"} 1.0' in metrics
        assert 'bark_fast_disconnects_total{when="streaming"} 0.0' in metrics
        came = b""
        try:
            while piece := stalled.recv(1 << 20):
                came += piece
        except ConnectionResetError:
            pass
        assert not came.endswith(b"0\r\n\r\n")
        assert len(came) < 9_600_000


def _client(server: ServerThread, **fields: Any) -> socket.socket:
    """Return a connection with small buffers on which a request for speech has been sent."""
    content = json.dumps({**SHORT, **fields}).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(
        b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(content) + content
    )
    return client


def test_memory_stays_flat() -> None:
    """500 short requests in all formats, with a made-up backend: what is kept is the server's."""
    formats = ("mp3", "opus", "flac", "wav", "pcm")
    with fake_process() as server, httpx.Client() as client:

        def ask(n: int) -> int:
            for i in range(n):
                body = {
                    **SHORT,
                    "response_format": formats[i % 5],
                    "stream": i % 2 == 0,
                    "stream_format": "sse" if i % 3 == 0 else "audio",
                }
                response = client.post(f"{server.url}/v1/audio/speech", json=body)
                assert response.status_code == 200
            return server.rss_bytes()

        after_100 = ask(100)
        after_500 = ask(400)
        assert after_500 - after_100 < 4 * 2**20, (after_100, after_500)
