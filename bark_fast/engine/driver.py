"""The thread that steps an engine."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from bark_fast.engine.engine import Engine
from bark_fast.engine.request import Request
from bark_fast.engine.utterance import Progress
from bark_fast.types import Speech


class Driver:
    """Steps an engine in a thread of its own for as long as there is work, for any number of
    threads that submit; the thread ends with the work, so nothing has to be closed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(
        self, request: Request, *, progress: Progress | None = None, urgent: bool = False
    ) -> Future[Speech]:
        """As `Engine.submit`, but nobody has to step."""
        future = self.engine.submit(request, progress=progress, urgent=urgent)
        # A cancelled request is work too: its pages have to come back.
        future.add_done_callback(lambda done: self._wake() if done.cancelled() else None)
        self._wake()
        return future

    def _wake(self) -> None:
        with self._lock:
            if self._thread is None and self.engine.has_work:
                self._thread = threading.Thread(target=self._run, name="bark-fast engine")
                self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                while self.engine.step():
                    pass
            except BaseException as error:
                # Not one utterance's fault: those are caught. Nobody must wait for ever.
                self.engine.fail_all(error)
            with self._lock:
                if not self.engine.has_work:
                    self._thread = None
                    return
