"""Wait for a list of requests, and hand out what became of them."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from bark_fast.engine.driver import Driver
from bark_fast.errors import GenerationError
from bark_fast.progress import ProgressBar
from bark_fast.request import Request
from bark_fast.text import warn_of_silence
from bark_fast.types import Speech


def speak_all(
    driver: Driver,
    requests: list[Request],
    *,
    single: bool,
    progress: bool,
    stacklevel: int = 3,
) -> list[Speech]:
    """Return the speech of each request, made in this thread if no other steps the engine.

    Args:
        single: the user asked for one alone, whose failure is raised as it is.
        progress: show a progress bar on standard error.
        stacklevel: of warnings, counted from here.

    Raises:
        GenerationError: some have failed; it holds the others' speech.
    """
    driver.home.check()  # before a bar, which has locks too
    with ProgressBar(len(requests), enabled=progress) as bar:
        reporters = [bar.reporter(i, request.stages) for i, request in enumerate(requests)]
        futures = driver.finish(requests, reporters)
    results = [_result(future) for future in futures]
    errors = [result for result in results if isinstance(result, Exception)]
    if errors:
        raise errors[0] if single else GenerationError(results)
    for request, speech in zip(requests, results, strict=True):
        made = speech.semantic_tokens if request.last_stage == "semantic" else speech.samples
        warn_of_silence(speech.text, len(made), stacklevel=stacklevel + 1)
    return results


def _result(future: Future[Speech]) -> Any:
    """Return the speech of a finished future, or the error that it failed with."""
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error or future.result()
