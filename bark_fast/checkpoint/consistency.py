"""The rules that a checkpoint's two files must keep between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bark_fast.errors import CheckpointError

if TYPE_CHECKING:
    from bark_fast.checkpoint.config import Config


def check_consistency(c: Config, where: str) -> None:
    """Raise CheckpointError for the first rule that the two files break between them."""
    s, k, f = c.semantic_rules, c.coarse_rules, c.fine_rules
    coarse_ids = s.semantic_vocab_size + k.n_coarse_codebooks * c.codebook_size

    def below(name: str, value: int, limit_name: str, limit: int) -> None:
        if value >= limit:
            raise CheckpointError(
                f"{where}: {name} must be below {limit_name} ({limit}), got {value}"
            )

    def at_most(name: str, value: float, limit_name: str, limit: float) -> None:
        if value > limit:
            raise CheckpointError(
                f"{where}: {name} must be at most {limit_name} ({limit}), got {value}"
            )

    semantic_vocab = "semantic_config.input_vocab_size"
    below(
        "text_encoding_offset", s.text_encoding_offset, semantic_vocab, c.semantic.input_vocab_size
    )
    below("text_pad_token", s.text_pad_token, semantic_vocab, c.semantic.input_vocab_size)
    below(
        "semantic_infer_token", s.semantic_infer_token, semantic_vocab, c.semantic.input_vocab_size
    )
    below("eos_token_id", s.eos_token_id, semantic_vocab, c.semantic.input_vocab_size)
    below(
        "eos_token_id",
        s.eos_token_id,
        "semantic_config.output_vocab_size",
        c.semantic.output_vocab_size,
    )
    at_most("semantic_vocab_size", s.semantic_vocab_size, "eos_token_id", s.eos_token_id)
    at_most(
        # The last token is never fed back, so prompt + infer token + the others need positions.
        "max_input_semantic_length + max_new_tokens",
        s.max_input_semantic_length + s.max_new_tokens,
        "semantic_config.block_size",
        c.semantic.block_size,
    )
    coarse_vocab = "coarse_acoustics_config.input_vocab_size"
    below("coarse_infer_token", k.coarse_infer_token, coarse_vocab, c.coarse.input_vocab_size)
    below(
        "coarse_semantic_pad_token",
        k.coarse_semantic_pad_token,
        coarse_vocab,
        c.coarse.input_vocab_size,
    )
    coarse_span = "semantic_vocab_size + n_coarse_codebooks * codebook_size"
    at_most(coarse_span, coarse_ids, coarse_vocab, c.coarse.input_vocab_size)
    at_most(
        coarse_span,
        coarse_ids,
        "coarse_acoustics_config.output_vocab_size",
        c.coarse.output_vocab_size,
    )
    at_most(
        "coarse_acoustics_config.output_vocab_size",
        c.coarse.output_vocab_size,
        coarse_vocab,
        c.coarse.input_vocab_size,
    )
    at_most(
        "max_coarse_input_length + max_coarse_history + sliding_window_len",
        k.max_coarse_input_length + k.max_coarse_history + k.sliding_window_len,
        "coarse_acoustics_config.block_size",
        c.coarse.block_size,
    )
    if k.sliding_window_len % k.n_coarse_codebooks:
        raise CheckpointError(
            f"{where}: sliding_window_len must be a multiple of n_coarse_codebooks "
            f"({k.n_coarse_codebooks}), got {k.sliding_window_len}"
        )
    at_most(
        "semantic_to_coarse_ratio (coarse_rate_hz / semantic_rate_hz * n_coarse_codebooks)",
        c.semantic_to_coarse_ratio,
        "max_coarse_history",
        k.max_coarse_history,
    )
    below("n_coarse_codebooks", k.n_coarse_codebooks, "n_fine_codebooks", f.n_fine_codebooks)
    at_most(
        "n_fine_codebooks",
        f.n_fine_codebooks,
        "fine_acoustics_config.n_codes_total",
        c.fine.n_codes_total,
    )
    at_most("n_codes_given", c.fine.n_codes_given, "n_coarse_codebooks", k.n_coarse_codebooks)
    # The id after the last code pads frames and codebooks that are not known yet.
    below(
        "codebook_size",
        c.codebook_size,
        "fine_acoustics_config.input_vocab_size",
        c.fine.input_vocab_size,
    )
    at_most(
        "codebook_size",
        c.codebook_size,
        "fine_acoustics_config.output_vocab_size",
        c.fine.output_vocab_size,
    )
    if c.fine.tie_word_embeddings and c.fine.input_vocab_size != c.fine.output_vocab_size:
        raise CheckpointError(
            f"{where}: fine_acoustics_config: output_vocab_size must equal input_vocab_size "
            f"({c.fine.input_vocab_size}) with tie_word_embeddings, got {c.fine.output_vocab_size}"
        )
    at_most(
        "max_fine_input_length",
        f.max_fine_input_length,
        "fine_acoustics_config.block_size",
        c.fine.block_size,
    )
    below(
        "max_fine_history_length",
        f.max_fine_history_length,
        "max_fine_input_length",
        f.max_fine_input_length,
    )
    at_most("codebook_size", c.codebook_size, "codec_config.codebook_size", c.codec.codebook_size)
    at_most(
        "n_fine_codebooks",
        f.n_fine_codebooks,
        "the codec's number of codebooks",
        c.codec.num_quantizers,
    )
