"""Steps an engine, in a caller's thread or in one of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NoReturn

import torch

from bark_fast import kernels
from bark_fast.engine.engine import Engine
from bark_fast.engine.utterance import Progress
from bark_fast.errors import carry_out, is_asynchronous
from bark_fast.process import HomeProcess, refuse_to_pickle
from bark_fast.request import Request
from bark_fast.types import Speech


class Driver:
    """Steps an engine as long as it has work, in one thread at a time.

    A thread that can only wait steps itself (`finish`). Otherwise (`begin`) a thread of the
    driver's own does, which ends with the work, so nothing has to be closed. On a CPU the caller's
    OpenMP workers are given back first: where two threads have some, all work more slowly (the
    native kernels have threads of their own, but torch and oneDNN compute with these). How many
    threads there are is torch's number for new threads, as the last torch.set_num_threads left it;
    a thread that was begun with another number makes room for a new one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._stepper: threading.Thread | None = None  # if it is alive, it steps
        self._n_threads = 0  # of the driver's own thread
        self._renew = False
        self.home = HomeProcess("a Bark model", self._is_idle)

    def __reduce__(self) -> NoReturn:
        refuse_to_pickle("a loaded Bark model")

    def _is_idle(self) -> bool:
        """Return True if a copy of this driver in a fork could be used."""
        return self._stepper is None and not self._lock.locked()

    def begin(
        self, request: Request, *, progress: Progress | None = None, urgent: bool = False
    ) -> Future[Speech]:
        """Submit a request, as `Engine.submit` does; nobody has to step."""
        self.home.check()
        if self._on_cpu:
            kernels.release_threads()
            if torch.get_num_threads() != self._n_threads:
                self._renew = True
        future = self._submit(request, progress, urgent)
        self._wake()
        return future

    def finish(
        self, requests: Sequence[Request], progress: Sequence[Progress | None]
    ) -> list[Future[Speech]]:
        """Submit and wait for all, in this thread if no other is stepping.

        An exception that comes from outside meanwhile, such as KeyboardInterrupt or what an alarm's
        handler raises, gives these requests up and no others.
        """
        self.home.check()
        futures: list[Future[Speech]] = []
        try:
            for request, report in zip(requests, progress, strict=True):
                futures.append(self._submit(request, report, False))
            try:
                if self._claim():
                    for future in futures:
                        while not future.done() and self._step():
                            pass
            finally:
                carry_out(self._leave)
            for future in futures:
                future.exception()  # waits, if another thread steps
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return futures

    @property
    def _on_cpu(self) -> bool:
        return self.engine.runner.device.type == "cpu"

    def _submit(self, request: Request, progress: Progress | None, urgent: bool) -> Future[Speech]:
        future = self.engine.submit(request, progress=progress, urgent=urgent)
        # A cancelled request is work too: its pages have to come back.
        future.add_done_callback(lambda done: self._wake() if done.cancelled() else None)
        return future

    def _step(self) -> bool:
        try:
            return self.engine.step()
        except Exception as error:
            if is_asynchronous(error):
                raise
            # Not one utterance's fault: those are caught. Nobody must wait for ever.
            self.engine.fail_all(error)
            return self.engine.has_work

    def _claim(self) -> bool:
        """Become the thread that steps, if there is work and none does."""
        with self._lock:
            if not self._needs(threading.current_thread()):
                return False
            self._stepper = threading.current_thread()
            return True

    def _needs(self, thread: threading.Thread) -> bool:
        """Return True if there is work and no thread but `thread` steps."""
        steps = self._stepper is not None and self._stepper.is_alive()
        return self.engine.has_work and (not steps or self._stepper is thread)

    def _leave(self) -> None:
        """Step no more in this thread; what others have submitted meanwhile goes on."""
        with self._lock:
            if self._stepper is threading.current_thread():
                self._stepper = None
        self._wake()

    def _wake(self) -> None:
        """Let the driver's own thread step, if there is work and none does."""
        with self._lock:
            if self._needs(threading.current_thread()):
                if self._on_cpu:
                    kernels.release_threads()  # an interrupt may have come without `begin`
                # If it does not start (too many threads), the next one who submits tries again.
                self._stepper = threading.Thread(target=self._run, name="bark-fast engine")
                self._stepper.start()

    def _run(self) -> None:
        try:
            self._n_threads, self._renew = torch.get_num_threads(), False
            while self._step() and not self._renew:
                pass
        finally:
            carry_out(self._leave)  # to a new thread, if there is more to do
