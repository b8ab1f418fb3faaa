"""Servers to measure, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import uvicorn

from bark_fast import Speech
from bark_fast.engine.stats import EngineStats
from bark_fast.server import ServerOptions, ServerVoices, Service, create_app
from bark_fast.server.runner import listen, uvicorn_config
from bark_fast.voices import open_voices
from bench.harness.engines import EngineSettings

_LOADING_S = 600.0


class Server:
    """`bark-fast serve` in a process of its own, from construction to `close`.

    Raises:
        RuntimeError: it ends before it is ready.
    """

    def __init__(self, options: EngineSettings, log: Path) -> None:
        command = [
            sys.executable, "-m", "bark_fast", "serve", "--port", "0", "--offline",
            "--model", str(options.checkpoint), "--device", options.device,
            "--dtype", options.dtype,
            # As many requests as come: to be turned away costs less than to be served.
            "--max-requests", str(2**30), "--max-queued-audio", "1e9",
        ]  # fmt: skip
        if options.max_batch is not None:
            command += ["--max-batch-size", str(options.max_batch)]
        environment = dict(os.environ)
        if options.threads is not None:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(command, stderr=stderr, env=environment)
        self.port = 0

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Wait until it is ready."""
        deadline = time.monotonic() + _LOADING_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            found = re.search(r"listening on http://[^:]*:(\d+)", self._log.read_text())
            if found is not None:
                self.port = int(found[1])
                with contextlib.suppress(OSError):  # 503 until it is ready
                    self.get("/ready")
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not become ready:\n{self._log.read_text()}")

    def get(self, path: str) -> str:
        """Return what GET answers with.

        Raises:
            OSError: it answers with an error, or not at all.
        """
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def wait_until_idle(self) -> None:
        """Wait until nothing is in its engine."""
        while re.search(r"^bark_fast_engine_active 0\.0$", self.get("/metrics"), re.M) is None:
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """Return the CPU time of its process so far, in seconds; in steps of 10 ms."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()  # a program's name may hold blanks
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class PreparedSpeech:
    """A backend whose every sentence is there already: what is left is what the server does."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech

    async def stream(self, text: str, **_: object) -> AsyncIterator[Speech]:
        """Say the same for every full stop."""
        for _ in range(text.count(".")):
            yield self._speech

    def stats(self) -> EngineStats:
        """Return nothing: it has no engine."""
        raise NotImplementedError

    async def close(self, *, cancel: bool = False) -> None:
        """Do nothing."""


class PreparedServer:
    """The server of `bark-fast serve` with `PreparedSpeech` behind it, in a thread; for a `Worker`.

    Args:
        sentence_s: length of a sentence's audio, of noise.
    """

    def __init__(self, checkpoint: Path, sentence_s: float) -> None:
        voices = open_voices(checkpoint, local_files_only=True)
        rate = voices.config.sample_rate_hz
        noise = np.random.default_rng(0).normal(0, 0.1, round(sentence_s * rate))
        codes = np.zeros((1, 1), dtype=np.int64)
        speech = Speech(
            samples=noise.astype(np.float32), sample_rate_hz=rate, text="", timings={}, seed=0,
            semantic_tokens=codes[0], coarse_tokens=codes, fine_tokens=codes, finish_reason="end",
        )  # fmt: skip

        async def load() -> PreparedSpeech:
            return PreparedSpeech(speech)

        options = ServerOptions(max_requests=2**30, max_queued_audio_s=1e9)
        service = Service(load, ServerVoices(voices), options=options)
        listener = listen("127.0.0.1", 0)
        self._port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn_config(create_app(service)))
        run = partial(server.run, sockets=[listener])
        Thread(target=run, daemon=True).start()
        while service.status != "ready":
            time.sleep(0.01)

    def port(self) -> int:
        """Return the port that it listens at."""
        return int(self._port)

    def cpu_s(self) -> float:
        """Return the CPU time of this process so far, in seconds."""
        return time.process_time()
