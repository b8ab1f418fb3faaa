"""Loading, signals and the end, of processes with a made-up backend; and what stops a start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bark_fast import serve
from bark_fast.cli import main
from bark_fast.voices import open_voices
from helpers.serving import ROOT, ServerProcess, fake_process, server_process, wait_until

N_SENTENCES = 12
BODY = {"model": "tts-1", "input": "One. " * N_SENTENCES, "response_format": "pcm"}


class Reader(threading.Thread):
    """Reads an answer to its end, beside the test.

    Attributes:
        status: of HTTP; `n_bytes` of audio that came; `end`: "clean" or the class of the error.
    """

    def __init__(self, server: ServerProcess, **fields: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._body = f"{server.url}/v1/audio/speech", {**BODY, **fields}
        self.status, self.n_bytes, self.content, self.end = 0, 0, b"", ""
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=60) as response:
                self.status = response.status_code
                for piece in response.iter_raw():
                    self.content += piece
                    self.n_bytes += len(piece)
            self.end = "clean"
        except httpx.HTTPError as error:
            self.end = type(error).__name__

    def result(self) -> tuple[int, str]:
        self.join(60)
        return self.status, self.end


def active(server: ServerProcess, n: int) -> None:
    line = f"bark_fast_engine_active {n}.0"
    wait_until(
        lambda: line in httpx.get(f"{server.url}/metrics").text.splitlines(), f"no {n} texts"
    )


def status_of(server: ServerProcess, path: str) -> int:
    return httpx.get(server.url + path).status_code


def test_answers_under_way_are_finished() -> None:
    with fake_process(delay_s=0.3, drain_s=50.0) as server:
        assert status_of(server, "/ready") == 200
        kinds = [{}, {"stream": False}, {"stream_format": "sse"}]
        readers = [Reader(server, **kind) for kind in kinds]
        active(server, 3)
        wait_until(lambda: readers[0].n_bytes, "no audio yet")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping: 3 answers are under way")
        ready = httpx.get(f"{server.url}/ready")
        assert ready.status_code == 503
        assert ready.json()["error"]["message"] == "the server is shutting down"
        assert status_of(server, "/health") == 200
        refused = httpx.post(f"{server.url}/v1/audio/speech", json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert [reader.result() for reader in readers] == [(200, "clean")] * 3
        n_bytes = N_SENTENCES * 2 * 4800
        assert readers[0].n_bytes == readers[1].n_bytes == n_bytes
        assert readers[2].content.count(b"speech.audio.done") == 1
        assert server.wait() == 0


def test_answers_that_take_too_long_are_broken_off() -> None:
    """A client that has heard nothing gets a status, and an event tells of the end."""
    with fake_process(delay_s=5.0, drain_s=0.3) as server:
        kinds = [{}, {"stream": False}, {"stream_format": "sse"}]
        readers = [Reader(server, **kind) for kind in kinds]
        active(server, 3)
        wait_until(lambda: readers[0].n_bytes, "no audio yet")
        wait_until(lambda: readers[2].n_bytes, "no event yet")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert readers[0].result() == (200, "RemoteProtocolError")
        assert readers[0].n_bytes < N_SENTENCES * 2 * 4800
        assert readers[1].result() == (503, "clean")
        assert readers[2].result() == (200, "clean")
        last = json.loads(readers[2].content.split(b"data: ")[-1])
        assert last["type"] == "error"
        assert last["error"]["code"] == "service_unavailable"
        assert "3 answers are broken off" in server.log
        assert "Traceback" not in server.log


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(sent: signal.Signals) -> None:
    with fake_process(delay_s=30.0, drain_s=600.0) as server:
        reader = Reader(server)
        active(server, 1)
        server.process.send_signal(sent)
        server.wait_for_log("stopping: 1 answers are under way")
        assert status_of(server, "/ready") == 503
        server.process.send_signal(sent)
        assert server.wait() == 128 + sent
        assert reader.result()[1] != "clean"


def test_while_loading() -> None:
    with fake_process("never") as server:
        assert status_of(server, "/health") == 200
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
        assert ready.json()["error"]["message"] == "the model is being loaded"
        assert httpx.post(f"{server.url}/v1/audio/speech", json=BODY).status_code == 503
        assert status_of(server, "/v1/audio/voices") == 200
        assert "bark_fast_engine" not in httpx.get(f"{server.url}/metrics").text
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM


def test_a_load_that_fails() -> None:
    """The server says so, and tells those who may read its log why."""
    with fake_process("fails") as server:
        server.wait_for_log("OSError: no such file: /etc/secret")
        ready = httpx.get(f"{server.url}/ready")
        assert ready.status_code == 503
        message = "the model could not be loaded; the server's log says more"
        assert ready.json()["error"]["message"] == message
        assert httpx.post(f"{server.url}/v1/audio/speech", json=BODY).status_code == 503
        assert status_of(server, "/health") == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


# The command -------------------------------------------------------------------------------------


def test_voices_are_read_again(tmp_path: Path) -> None:
    """SIGHUP reads the folder; one that is broken, or gone, changes nothing."""
    folder = tmp_path / "voices"
    folder.mkdir()
    voice = open_voices("demo").get("v2/en_speaker_0")
    assert voice is not None
    voice.save(folder / "ann.npz")

    def names() -> list[str]:
        voices = httpx.get(f"{server.url}/v1/audio/voices").json()["voices"]
        return [each["id"] for each in voices if not each["id"].startswith("v2/")]

    def reload(logged: str) -> None:
        server.lines.clear()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(logged)

    with server_process("--voices", str(folder)) as server:
        assert names() == ["ann"]
        voice.save(folder / "ben.npz")
        reload("voices: .*ann, ben")
        assert names() == ["ann", "ben"]
        (folder / "cat.npz").write_bytes(b"PK\x03\x04 not a voice")
        reload("the voices stay as they were: .*cat.npz")
        assert names() == ["ann", "ben"]
        np.savez(folder / "cat.npz", semantic_prompt=[1.5])
        reload("the voices stay as they were: .*cat.npz")
        folder.rename(tmp_path / "away")
        reload("the voices stay as they were: --voices must be a folder")
        assert names() == ["ann", "ben"]
        # And the voice that was read speaks, here with the real engine.
        body = {**BODY, "input": "Hello.", "voice": "ben"}
        assert (
            len(httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=60).content) > 1000
        )
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"bark-fast: error: --host and --port must be free, got 127.0.0.1:{port}"
    )
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no such host"], "--host must be an address of this machine"),
        (["--port", "65536"], "--port must be an integer from 0 to 65535, got 65536"),
        (["--max-requests", "0"], "max_requests must be an integer >= 1, got 0"),
        (["--drain", "-1"], "drain_s must be a number of seconds >= 0, got -1.0"),
        (["--stall", "nan"], "stall_s must be a number of seconds above 0, got nan"),
        (["--api-key", ""], "api_key must not be empty"),
        (["--voices", "/nowhere"], "--voices must be a folder that can be read"),
        (["--model", "/nowhere"], "nowhere"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_key_of_the_environment_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(serve.KEY_VARIABLE, "")
    assert main(["serve", "--port", "0"]) == 2
    assert "api_key must not be empty" in capsys.readouterr().err


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str) -> Any:
        return None if name in ("fastapi", "prometheus_client") else find_spec(name)

    monkeypatch.setattr(serve, "find_spec", find)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == (
        "bark-fast: error: serve must have fastapi, prometheus-client: "
        "pip install 'bark-fast[serve]'\n"
    )


def test_who_does_not_serve_imports_no_server() -> None:
    code = (
        "import sys, bark_fast\n"
        "from bark_fast.cli import main\n"
        f"assert main(['say', 'Hello', '-o', {os.devnull!r}]) == 0\n"
        "server = {'fastapi', 'uvicorn', 'starlette', 'httptools', 'prometheus_client'}\n"
        "print(sorted(server & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
