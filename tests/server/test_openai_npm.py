"""OpenAI's client for Node against `bark-fast serve`, with the demo voice."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.decoding import decode_response
from helpers.fake_backend import FakeBackend
from helpers.programs import needs_program
from helpers.serving import ServerProcess, server_process, server_thread, wait_until

KEY = "a-secret"
HOW = "apt-get install nodejs npm"
SOURCES = Path(__file__).parent / "npm"
CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class Node:
    """Runs client.js in a folder in which the client is installed."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def run(self, url: str, what: str) -> Any:
        """Return what the client saw."""
        done = subprocess.run(
            [self._program, self._folder / "client.js", url, KEY, what],
            cwd=self._folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Node:
    program, npm = needs_program(request, "node", HOW), needs_program(request, "npm", HOW)
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "client.js"):
        shutil.copy(SOURCES / name, folder)
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
        cwd=folder, capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    return Node(program, folder)


@pytest.fixture(scope="module")
def server(node: Node) -> Iterator[ServerProcess]:
    with server_process("--api-key", KEY) as server:
        yield server


def test_every_format(node: Node, server: ServerProcess) -> None:
    made = node.run(server.url, "create")
    assert {name: each["type"] for name, each in made.items()} == CONTENT_TYPES
    seconds = {}
    for name, each in made.items():
        samples, rate_hz = decode_response(base64.b64decode(each["content"]), name)
        seconds[name] = len(samples) / rate_hz
    assert 0.5 < seconds["pcm"] < 4
    assert seconds == {name: pytest.approx(seconds["pcm"], abs=0.15) for name in seconds}


def test_a_streamed_body(node: Node, server: ServerProcess) -> None:
    seen = node.run(server.url, "stream")
    assert seen["same"]
    assert seen["bytes"] > 48_000
    assert seen["pieces"] > 1
    assert seen["length"] == 0, "a length before the speech was there"
    assert seen["seed"] == "3"


def test_events(node: Node, server: ServerProcess) -> None:
    seen = node.run(server.url, "events")
    assert seen["bytes"] > 48_000
    assert seen["last"]["type"] == "speech.audio.done"
    assert seen["last"]["usage"]["output_tokens"] > 0


def test_models(node: Node, server: ServerProcess) -> None:
    seen = node.run(server.url, "models")
    assert seen["listed"] == ["demo"]
    assert seen["one"]["id"] == "demo"
    assert seen["requestID"].startswith("req_")


def test_errors(node: Node, server: ServerProcess) -> None:
    seen = node.run(server.url, "errors")
    shown = {key: (each["name"], each["status"], each["param"]) for key, each in seen.items()}
    assert shown == {
        "voice": ("BadRequestError", 400, "voice"),
        "speed": ("BadRequestError", 400, "speed"),
        "model": ("NotFoundError", 404, "model"),
        "key": ("AuthenticationError", 401, None),
    }
    assert seen["model"]["code"] == "model_not_found"
    assert seen["key"]["code"] == "invalid_api_key"
    for each in seen.values():
        assert each["requestID"].startswith("req_")


def test_who_is_turned_away_comes_again_when_told_to(node: Node) -> None:
    backend = FakeBackend(gated=True)
    order = {"model": "tts-1", "input": "One " * 12 + "is here.", "response_format": "pcm"}
    with server_thread(backend, max_requests=1) as server:

        def ask() -> httpx.Response:
            return httpx.post(f"{server.url}/v1/audio/speech", json=order, timeout=60)

        first = threading.Thread(target=ask)
        first.start()
        wait_until(lambda: backend.n_begun == 1, "the first has not begun")
        retry_after_s = int(ask().headers["retry-after"])
        # Longer than the client would wait by itself, so that it shows who decides.
        assert 2 <= retry_after_s <= 10

        def refused() -> float:
            return server.service.metrics.rejections.labels("429")._value.get()

        before, seen = refused(), []
        second = threading.Thread(target=lambda: seen.append(node.run(server.url, "retry")))
        second.start()
        wait_until(lambda: refused() == before + 1, "the second was not turned away")
        backend.say(2)
        first.join()
        second.join()
        assert seen[0]["bytes"] == 9_600
        assert seen[0]["seconds"] >= retry_after_s
        assert refused() == before + 1
