"""A progress bar for utterances, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from bark_fast.console import forgiving
from bark_fast.engine.utterance import Progress
from bark_fast.types import STAGES, Stage


class _Bar:
    """A tqdm bar, or nothing where none can be shown: no failure of it is worth an utterance.

    There may be no standard error, or it may be closed meanwhile, or no longer be read.
    """

    def __init__(self, **options: Any) -> None:
        self._bar: Any = None
        self._words = ""
        try:
            from tqdm.auto import tqdm

            # A write that fails would leave tqdm's lock locked, and the next bar would wait for it.
            stderr = forgiving(sys.stderr)
            self._bar = tqdm(leave=False, file=stderr, dynamic_ncols=True, **options)
        except Exception:
            return

    def show(self, done: int, total: int, words: str | None = None) -> None:
        """Move the bar to `done` of `total`, never back, and put `words` before it."""
        bar = self._bar
        try:
            if bar is None:
                return
            bar.total = total
            bar.update(max(0, done - bar.n))
            if words is not None:
                bar.set_description(words, refresh=words != self._words)
                self._words = words
        except Exception:
            self._bar = None

    def close(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        try:
            if bar is not None:
                bar.close()
        except Exception:
            return


class ProgressBar:
    """A tqdm bar for all utterances, which may be made at the same time."""

    # About what a stage takes of an utterance's time.
    _SHARES: ClassVar = {"semantic": 0.2, "coarse": 0.4, "fine": 0.35, "codec": 0.05}

    def __init__(self, n_utterances: int, *, enabled: bool) -> None:
        self._n = n_utterances
        self._shares: list[dict[str, float]] = [{} for _ in range(n_utterances)]
        self._finished: set[int] = set()
        self._bar: _Bar | None = None
        if enabled and n_utterances:
            self._bar = _Bar(
                total=100 * n_utterances,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def reporter(self, index: int, stages: Sequence[Stage] = STAGES) -> Progress | None:
        """Return the callback of utterance `index`, which passes through `stages`."""
        bar = self._bar
        if bar is None:
            return None
        whole = sum(self._SHARES[stage] for stage in stages)

        def report(stage: Stage, done: int, total: int) -> None:
            shares = self._shares[index]
            shares[stage] = self._SHARES[stage] / whole * done / max(1, total)
            if stage == stages[-1] and done == total:
                shares.clear()  # stages may end before their most steps
                shares[stage] = 1.0
                self._finished.add(index)
            finished = len(self._finished)
            reached = round(100 * sum(sum(each.values()) for each in self._shares))
            bar.show(reached, 100 * self._n, f"{finished}/{self._n} {stage}")

        return report


@contextmanager
def counting_bar(what: str, *, enabled: bool) -> Iterator[Callable[..., None]]:
    """Show a bar of `what` and yield the function that moves it, of (done, total[, words])."""
    bar = _Bar(desc=what) if enabled else None
    try:
        yield lambda done, total, words=None: None if bar is None else bar.show(done, total, words)
    finally:
        if bar is not None:
            bar.close()
