"""Every rule between a checkpoint's two files is looked at, and its message names both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.consistency import RULES, Rule, check_consistency
from bark_fast.checkpoint.reading import parse_config
from bark_fast.errors import CheckpointError
from helpers.checkpoints import small_windows

# For each rule, in order, a change of the small settings that breaks it and none before it.
_CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("semantic_rules", {"text_encoding_offset": 1100}),
    ("semantic_rules", {"text_pad_token": 1100}),
    ("semantic_rules", {"semantic_infer_token": 1100}),
    ("semantic_rules", {"eos_token_id": 1100}),
    ("semantic_rules", {"eos_token_id": 128}),
    ("semantic_rules", {"semantic_vocab_size": 101}),
    ("semantic_rules", {"max_new_tokens": 149}),
    ("coarse_rules", {"coarse_infer_token": 240}),
    ("coarse_rules", {"coarse_semantic_pad_token": 240}),
    ("", {"codebook_size": 71}),
    ("", {"codebook_size": 69}),
    ("coarse", {"output_vocab_size": 241}),
    ("coarse_rules", {"max_coarse_history": 85}),
    ("coarse_rules", {"sliding_window_len": 11}),
    ("coarse_rules", {"coarse_rate_hz": 1e6}),
    ("fine_rules", {"n_fine_codebooks": 2}),
    ("fine", {"n_codes_total": 4}),
    ("fine", {"n_codes_given": 3}),
    ("fine", {"input_vocab_size": 64}),
    ("fine", {"output_vocab_size": 63}),
    ("fine", {"output_vocab_size": 71}),
    ("fine", {"block_size": 63}),
    ("fine_rules", {"max_fine_history_length": 64}),
    ("codec", {"codebook_size": 63}),
    ("codec", {"num_quantizers": 4}),
)


def changed(part: str, values: dict[str, Any]) -> Config:
    config = parse_config(*small_windows())
    if not part:
        return replace(config, **values)
    return replace(config, **{part: replace(getattr(config, part), **values)})


@pytest.mark.parametrize(
    ("rule", "change"),
    list(zip(RULES, _CHANGES, strict=True)),
    ids=lambda x: f"{x.quantity} {x.relation} {x.other}" if isinstance(x, Rule) else "",
)
def test_rules(rule: Rule, change: tuple[str, dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_consistency(changed(*change), "here")
    assert str(caught.value).startswith(f"here: {rule.quantity} {rule.relation} {rule.other} (")


def test_heads_that_are_not_tied() -> None:
    config = changed("fine", {"output_vocab_size": 71, "tie_word_embeddings": False})
    check_consistency(config, "here")
