"""Servers for tests: the command as a process of its own, and the app in a thread of this one with
a backend whose sentences come when the test says so."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from bark_fast.server import ServerOptions, ServerVoices, Service, create_app
from bark_fast.server.runner import listen, run, uvicorn_config
from helpers.fake_backend import FakeBackend

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0  # for what takes a moment, on a machine that is busy with something else


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until a condition holds, and return its value.

    Raises:
        AssertionError: it has not come about in time.
    """
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"after {deadline_s:g} s: {what}"
        time.sleep(0.01)
    return value


# A process ---------------------------------------------------------------------------------------


class ServerProcess:
    """`bark-fast serve` in a process of its own.

    Attributes:
        process: the process.
        url: where it listens.
        lines: of its log so far.
    """

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                **(env or {}),
            },
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def log(self) -> str:
        """All of its log so far."""
        return "\n".join(self.lines)

    def wait_for_log(self, pattern: str, deadline_s: float = DEADLINE_S) -> re.Match[str]:
        """Wait until the log has a match of a pattern, and return it."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.log)
            assert found or self.process.poll() is None, f"it has ended: {self.log}"
            return found

        found: re.Match[str] = wait_until(look, f"no {pattern!r} in the log", deadline_s)
        return found

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait until the process has ended, and return its exit status."""
        status = self.process.wait(deadline_s)
        self._reader.join(deadline_s)
        return status

    def metric(self, series: str) -> float:
        """Return the value of a series, named as /metrics names it, labels and all."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=DEADLINE_S) as answer:
            text = answer.read().decode()
        (value,) = re.findall(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        return float(value)

    def freeze(self) -> None:
        """Let it do nothing until `thaw`."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Return the memory that it has in use."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def server_process(
    *arguments: str, ready: bool = True, env: dict[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Run `bark-fast serve --port 0` with more arguments; it is killed at the end.

    Args:
        ready: wait until it has loaded its model, not only until it listens.
    """
    with _running(
        ServerProcess("bark_fast", "serve", "--port", "0", *arguments, env=env), ready
    ) as server:
        yield server


@contextmanager
def fake_process(load: str = "at once", **options: float) -> Iterator[ServerProcess]:
    """Run a server with a `FakeBackend` in a process of its own, which starts sooner.

    Args:
        load: "at once", "never" (it goes on for an hour) or "fails".
        options: of ServerOptions, and `delay_s` of FakeBackend.
    """
    command = ("helpers.serving", load, json.dumps(options))
    with _running(ServerProcess(*command), load == "at once") as server:
        yield server


@contextmanager
def _running(server: ServerProcess, ready: bool) -> Iterator[ServerProcess]:
    try:
        server.url = server.wait_for_log(r"listening on (http://\S+)")[1]
        if ready:
            server.wait_for_log(r"(?m)^bark-fast: ready$")
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGKILL)
        server.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


# A thread ----------------------------------------------------------------------------------------


class ServerThread:
    """The app under uvicorn in a thread of this process.

    Attributes:
        backend, service: what is behind the routes.
        url, port: where it listens, at 127.0.0.1.
    """

    def __init__(
        self,
        backend: Any,
        load: Callable[[], Awaitable[Any]] | None = None,
        voices: ServerVoices | None = None,
        **options: Any,
    ) -> None:
        self.backend = backend

        async def give() -> Any:
            return backend

        checked = ServerOptions(**options)
        self.service = Service(
            load or give,
            voices or ServerVoices.open("demo", None),
            options=checked,
        )
        self._listener = listen("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn_config(create_app(self.service)))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "it does not serve")

    def _run(self) -> None:
        async def serve() -> None:
            self.backend.loop = asyncio.get_running_loop()
            await self._server.serve([self._listener])

        asyncio.run(serve())

    @property
    def n_connections(self) -> int:
        """Connections that are open."""
        return len(self._server.server_state.connections)

    def is_idle(self) -> bool:
        """Return whether nothing is waited for, worked on, or counted."""
        admission = self.service.admission
        return (admission.n_requests, admission.audio_s, self.service.n_answers) == (0, 0, 0)

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


@contextmanager
def server_thread(backend: Any, *, ready: bool = True, **options: Any) -> Iterator[ServerThread]:
    """Serve a backend on loopback; at the end nothing may be under way that a client had left.

    Args:
        ready: wait until the backend is loaded.
        options: of `ServerThread`.
    """
    server = ServerThread(backend, **options)
    try:
        if ready:
            wait_until(lambda: server.service.status == "ready", "it is not ready")
        yield server
        wait_until(server.is_idle, "requests are counted that are over")
    finally:
        server.stop()


# The process of `fake_process` --------------------------------------------------------------------


def _main(load: str, options: dict[str, float]) -> None:
    backend = FakeBackend(delay_s=options.pop("delay_s", 0.0))

    async def give() -> FakeBackend:
        if load == "never":
            await asyncio.to_thread(time.sleep, 3600)
        if load == "fails":
            raise OSError("no such file: /etc/secret")
        return backend

    checked = ServerOptions(**options)  # type: ignore[arg-type]
    service = Service(give, ServerVoices.open("demo", None), options=checked)
    run(service, listen("127.0.0.1", 0))


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
