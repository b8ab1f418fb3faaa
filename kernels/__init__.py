"""The operations that Bark's networks are made of; models call these and nothing else.

Every operation is a function of tensors, with keyword-only options and no state. Shapes use one
vocabulary: B batch, T tokens, N packed tokens of several sequences, H heads, D head size, C width,
F frames, V vocabulary, K streams or codebooks.
"""

from bark_fast.kernels.reference import (
    attention,
    codebook_sum,
    embedding_sum,
    layer_norm,
    linear,
    linear_rows,
    paged_attention,
    philox_uint32,
    process_logits,
    sample,
    write_pages,
)

__all__ = [
    "attention",
    "codebook_sum",
    "embedding_sum",
    "layer_norm",
    "linear",
    "linear_rows",
    "paged_attention",
    "philox_uint32",
    "process_logits",
    "sample",
    "write_pages",
]
