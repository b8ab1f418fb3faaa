"""Do in advance what an engine otherwise does when it first meets a batch of some size."""

from __future__ import annotations

from collections.abc import Callable

from bark_fast.engine.engine import Engine
from bark_fast.request import rehearsal

# Kernels differ for one row, for few, and for a multiple of 16.
_GROUPS = (1, 2, 16)


def warm_up(engine: Engine, progress: Callable[[int, int], None] | None = None) -> None:
    """Capture steps, prompts and passes of all sizes, and let the codec's shapes be planned.

    On a GPU utterances that nobody hears then pass through every stage, one and some together, so
    that no later one waits for a kernel to be compiled.

    Args:
        progress: called with (done, to be done).
    """
    captures = engine.runner.warm_ups()
    groups = _GROUPS if engine.runner.device.type == "cuda" else ()
    total = len(captures) + len(groups)
    report = progress or (lambda done, total: None)
    with engine.standstill():
        for n_done, capture in enumerate(captures, start=1):
            capture()
            report(n_done, total)
    for n_done, n in enumerate(groups, start=len(captures) + 1):
        _rehearse(engine, n)
        report(n_done, total)


def _rehearse(engine: Engine, n: int) -> None:
    futures = [engine.submit(request) for request in rehearsal() * n]
    while not all(future.done() for future in futures) and engine.step():
        pass
    for future in futures:
        future.result(timeout=0)
