"""Options of an engine: what users may ask for."""

from __future__ import annotations

from bark_fast import Bark, EngineOptions, GenerationParams
from helpers.checkpoints import Checkpoint


def test_bark_takes_options(small: Checkpoint) -> None:
    bark = Bark.from_pretrained(
        small.folder, device="cpu", engine=EngineOptions(max_batch_size=2, page_size=8)
    )
    bark.warm_up(progress=True)
    speeches = bark.generate(["One", "Two", "Three"], params=GenerationParams(seed=1))
    assert len(speeches) == 3
    assert bark.stats().finished == 3
    assert bark.stats().stages["semantic"].utterances_a_batch <= 2
