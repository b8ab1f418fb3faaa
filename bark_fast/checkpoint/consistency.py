"""The rules that a checkpoint's two files must keep between them, as a table of sentences.

A rule compares two quantities, each of which has one name in `QUANTITIES`, and reads as its error
message does: "text_pad_token" "must be below" "semantic_config.input_vocab_size". To add one, name
its quantities, if they are not there yet, and write its line in `RULES`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from bark_fast.checkpoint.config import Config
from bark_fast.errors import CheckpointError

QUANTITIES: Mapping[str, Callable[[Config], float]] = {
    # The semantic model
    "semantic_config.input_vocab_size": lambda c: c.semantic.input_vocab_size,
    "semantic_config.output_vocab_size": lambda c: c.semantic.output_vocab_size,
    "semantic_config.block_size": lambda c: c.semantic.block_size,
    "text_encoding_offset": lambda c: c.semantic_rules.text_encoding_offset,
    "text_pad_token": lambda c: c.semantic_rules.text_pad_token,
    "semantic_infer_token": lambda c: c.semantic_rules.semantic_infer_token,
    "eos_token_id": lambda c: c.semantic_rules.eos_token_id,
    "semantic_vocab_size": lambda c: c.semantic_rules.semantic_vocab_size,
    "max_input_semantic_length + max_new_tokens": lambda c: (
        c.semantic_rules.max_input_semantic_length + c.semantic_rules.max_new_tokens
    ),
    # The coarse model
    "coarse_acoustics_config.input_vocab_size": lambda c: c.coarse.input_vocab_size,
    "coarse_acoustics_config.output_vocab_size": lambda c: c.coarse.output_vocab_size,
    "coarse_acoustics_config.block_size": lambda c: c.coarse.block_size,
    "coarse_infer_token": lambda c: c.coarse_rules.coarse_infer_token,
    "coarse_semantic_pad_token": lambda c: c.coarse_rules.coarse_semantic_pad_token,
    "semantic_vocab_size + n_coarse_codebooks * codebook_size": lambda c: (
        c.semantic_rules.semantic_vocab_size + c.coarse_rules.n_coarse_codebooks * c.codebook_size
    ),
    "max_coarse_input_length + max_coarse_history + sliding_window_len": lambda c: (
        c.coarse_rules.max_coarse_input_length
        + c.coarse_rules.max_coarse_history
        + c.coarse_rules.sliding_window_len
    ),
    "sliding_window_len": lambda c: c.coarse_rules.sliding_window_len,
    "n_coarse_codebooks": lambda c: c.coarse_rules.n_coarse_codebooks,
    "semantic_to_coarse_ratio (coarse_rate_hz / semantic_rate_hz * n_coarse_codebooks)": (
        lambda c: c.semantic_to_coarse_ratio
    ),
    "max_coarse_history": lambda c: c.coarse_rules.max_coarse_history,
    # The fine model
    "fine_acoustics_config.input_vocab_size": lambda c: c.fine.input_vocab_size,
    "fine_acoustics_config.output_vocab_size": lambda c: c.fine.output_vocab_size,
    "fine_acoustics_config.block_size": lambda c: c.fine.block_size,
    "fine_acoustics_config.n_codes_total": lambda c: c.fine.n_codes_total,
    "n_codes_given": lambda c: c.fine.n_codes_given,
    "n_fine_codebooks": lambda c: c.fine_rules.n_fine_codebooks,
    "max_fine_input_length": lambda c: c.fine_rules.max_fine_input_length,
    "max_fine_history_length": lambda c: c.fine_rules.max_fine_history_length,
    # The codec
    "codebook_size": lambda c: c.codebook_size,
    "codec_config.codebook_size": lambda c: c.codec.codebook_size,
    "the codec's number of codebooks": lambda c: c.codec.num_quantizers,
}

Relation = Literal["must be below", "must be at most", "must be a multiple of", "must equal"]

_HOLDS: Mapping[Relation, Callable[[float, float], bool]] = {
    "must be below": operator.lt,
    "must be at most": operator.le,
    "must be a multiple of": lambda value, other: value % other == 0,
    "must equal": operator.eq,
}


class Rule(NamedTuple):
    """`quantity` must stand in `relation` to `other`; `if_tied`: only where the fine model's heads
    are tied to its embeddings."""

    quantity: str
    relation: Relation
    other: str
    if_tied: bool = False


RULES = (
    Rule("text_encoding_offset", "must be below", "semantic_config.input_vocab_size"),
    Rule("text_pad_token", "must be below", "semantic_config.input_vocab_size"),
    Rule("semantic_infer_token", "must be below", "semantic_config.input_vocab_size"),
    Rule("eos_token_id", "must be below", "semantic_config.input_vocab_size"),
    Rule("eos_token_id", "must be below", "semantic_config.output_vocab_size"),
    Rule("semantic_vocab_size", "must be at most", "eos_token_id"),
    # The last token is never fed back, so prompt + infer token + the others need positions.
    Rule(
        "max_input_semantic_length + max_new_tokens",
        "must be at most",
        "semantic_config.block_size",
    ),
    Rule("coarse_infer_token", "must be below", "coarse_acoustics_config.input_vocab_size"),
    Rule("coarse_semantic_pad_token", "must be below", "coarse_acoustics_config.input_vocab_size"),
    Rule(
        "semantic_vocab_size + n_coarse_codebooks * codebook_size",
        "must be at most",
        "coarse_acoustics_config.input_vocab_size",
    ),
    Rule(
        "semantic_vocab_size + n_coarse_codebooks * codebook_size",
        "must be at most",
        "coarse_acoustics_config.output_vocab_size",
    ),
    Rule(
        "coarse_acoustics_config.output_vocab_size",
        "must be at most",
        "coarse_acoustics_config.input_vocab_size",
    ),
    Rule(
        "max_coarse_input_length + max_coarse_history + sliding_window_len",
        "must be at most",
        "coarse_acoustics_config.block_size",
    ),
    Rule("sliding_window_len", "must be a multiple of", "n_coarse_codebooks"),
    Rule(
        "semantic_to_coarse_ratio (coarse_rate_hz / semantic_rate_hz * n_coarse_codebooks)",
        "must be at most",
        "max_coarse_history",
    ),
    Rule("n_coarse_codebooks", "must be below", "n_fine_codebooks"),
    Rule("n_fine_codebooks", "must be at most", "fine_acoustics_config.n_codes_total"),
    Rule("n_codes_given", "must be at most", "n_coarse_codebooks"),
    # The id after the last code pads frames and codebooks that are not known yet.
    Rule("codebook_size", "must be below", "fine_acoustics_config.input_vocab_size"),
    Rule("codebook_size", "must be at most", "fine_acoustics_config.output_vocab_size"),
    Rule(
        "fine_acoustics_config.output_vocab_size",
        "must equal",
        "fine_acoustics_config.input_vocab_size",
        if_tied=True,
    ),
    Rule("max_fine_input_length", "must be at most", "fine_acoustics_config.block_size"),
    Rule("max_fine_history_length", "must be below", "max_fine_input_length"),
    Rule("codebook_size", "must be at most", "codec_config.codebook_size"),
    Rule("n_fine_codebooks", "must be at most", "the codec's number of codebooks"),
)


def check_consistency(config: Config, where: str) -> None:
    """Raise CheckpointError for the first rule that `config` breaks.

    Args:
        where: the name of the checkpoint in the message.
    """
    for rule in RULES:
        if rule.if_tied and not config.fine.tie_word_embeddings:
            continue
        value, other = QUANTITIES[rule.quantity](config), QUANTITIES[rule.other](config)
        if not _HOLDS[rule.relation](value, other):
            condition = " with tie_word_embeddings" if rule.if_tied else ""
            raise CheckpointError(
                f"{where}: {rule.quantity} {rule.relation} {rule.other} ({other}){condition}, "
                f"got {value}"
            )
