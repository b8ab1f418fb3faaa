"""An utterance as a pure function of results: what each makes it ready for."""

from __future__ import annotations

from bark_fast import GenerationParams
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint
from helpers.engine_fakes import PAGES, alone, fake_engine, finish


def test_coarse_windows_begin_before_the_text_has_ended(small: Checkpoint) -> None:
    """Which is early for a long text: the first window needs 32 of the 140 semantic tokens."""
    engine = fake_engine(small.config, n_pages=PAGES, policy="latency", steps=1)
    seed = next(
        seed
        for seed in range(1000)
        if len(alone(small, long_request(small, seed)).semantic_tokens) > 60
    )  # fmt: skip
    progress: list[tuple[str, int]] = []
    engine.submit(
        long_request(small, seed),
        progress=lambda stage, done, total: progress.append((stage, done)),
    )
    finish(engine)
    first_coarse = next(i for i, (stage, _) in enumerate(progress) if stage == "coarse")
    last_semantic = max(i for i, (stage, _) in enumerate(progress) if stage == "semantic")
    assert first_coarse < last_semantic
    assert progress[first_coarse - 1] == ("semantic", 32)


def long_request(small: Checkpoint, seed: int) -> Request:
    return small.bark.request(
        "a", None, GenerationParams(seed=seed, max_semantic_tokens=140, min_eos_p=0)
    )
