"""A progress bar for utterances, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from bark_fast.engine.utterance import Progress
from bark_fast.types import STAGES, Stage


class ProgressBar:
    """A tqdm bar for all utterances, which may be made at the same time."""

    # About what a stage takes of an utterance's time.
    _SHARES: ClassVar = {"semantic": 0.2, "coarse": 0.4, "fine": 0.35, "codec": 0.05}

    def __init__(self, n_utterances: int, *, enabled: bool) -> None:
        self._n = n_utterances
        self._shares: list[dict[str, float]] = [{} for _ in range(n_utterances)]
        self._finished: set[int] = set()
        self._words = ""
        self._bar: Any = None
        if enabled and n_utterances:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=100 * n_utterances,
                leave=False,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def reporter(self, index: int, stages: Sequence[Stage] = STAGES) -> Progress | None:
        """Return the callback of utterance `index`, which passes through `stages`."""
        if self._bar is None:
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
            self._bar.update(max(0, reached - self._bar.n))
            words = f"{finished}/{self._n} {stage}"
            self._bar.set_description(words, refresh=words != self._words)
            self._words = words

        return report


@contextmanager
def counting_bar(what: str, *, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of `what` and yield the function that moves it, of (done, total)."""
    from tqdm.auto import tqdm

    with tqdm(desc=what, leave=False, disable=not enabled) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report
