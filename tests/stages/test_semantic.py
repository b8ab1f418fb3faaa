"""The semantic stage's rules, each against a number worked out by hand."""

from __future__ import annotations

from bark_fast.checkpoint.config import Config
from bark_fast.stages import semantic


def test_semantic_prompt_is_text_plus_history_then_infer(config: Config) -> None:
    text, history = semantic.build_prompt([5, 6], [7, 8, 9], config.semantic_rules)
    assert len(text) == len(history) == 257
    assert text[:3] == [5 + 10_048, 6 + 10_048, 129_595]
    assert set(text[2:256]) == {129_595}
    assert text[256] == 129_599
    assert history[:3] == [7, 8, 9]
    assert set(history[3:256]) == {10_000}
    assert history[256] == semantic.SILENT


def test_semantic_prompt_keeps_the_start_of_text_and_the_end_of_history(config: Config) -> None:
    text, history = semantic.build_prompt(
        list(range(300)), list(range(1000, 1300)), config.semantic_rules
    )
    assert text[0] == 10_048
    assert text[255] == 255 + 10_048
    assert history[:256] == list(range(1044, 1300))


def test_semantic_samples_its_vocabulary_and_the_end(config: Config) -> None:
    assert semantic.sampled_ids(config.semantic_rules) == list(range(10_001))
