"""Frozen data of a checkpoint's config.json and generation_config.json.

`checkpoint.reading` makes these from the files and checks them (`checkpoint.consistency`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bark_fast.types import TokenStage

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

NETWORKS: Mapping[TokenStage, str] = {
    "semantic": "semantic",
    "coarse": "coarse_acoustics",
    "fine": "fine_acoustics",
}
"""transformers' names of the stages' networks: the names of their tensors begin with them, and a
section of either file is one with "_config" behind it."""
CODEC = "codec_model"
"""The first part of the names of the codec's tensors."""


@dataclass(frozen=True)
class GPTConfig:
    """The shape of one transformer.

    Attributes:
        bias: linear layers have biases. In the causal models the layer norms follow it; in the
            fine model they always have one.
        block_size: positions.
    """

    num_layers: int
    num_heads: int
    hidden_size: int
    block_size: int
    input_vocab_size: int
    output_vocab_size: int
    bias: bool

    @property
    def head_size(self) -> int:
        """The width of one head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class FineGPTConfig(GPTConfig):
    """The shape of the fine transformer, which has an embedding for each codebook and a head for
    each after the first `n_codes_given`."""

    n_codes_total: int
    n_codes_given: int
    tie_word_embeddings: bool


@dataclass(frozen=True)
class CodecConfig:
    """EnCodec's decoder.

    Attributes:
        hop_length: samples a frame.
        settings: the arguments of transformers' EncodecConfig.
    """

    sampling_rate_hz: int
    hop_length: int
    codebook_size: int
    codebook_dim: int
    num_quantizers: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling of one stage where a request leaves it open.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities reach p; 1 keeps all.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class SemanticRules:
    """Token ids and limits of the semantic stage (transformers' BarkSemanticGenerationConfig)."""

    text_encoding_offset: int
    text_pad_token: int
    semantic_vocab_size: int
    eos_token_id: int
    semantic_infer_token: int
    max_input_semantic_length: int
    max_new_tokens: int
    semantic_rate_hz: float
    min_eos_p: float
    sampling: SamplingDefaults


@dataclass(frozen=True)
class CoarseRules:
    """Token ids and windows of the coarse stage (transformers' BarkCoarseGenerationConfig)."""

    coarse_semantic_pad_token: int
    coarse_infer_token: int
    coarse_rate_hz: float
    n_coarse_codebooks: int
    max_coarse_input_length: int
    max_coarse_history: int
    sliding_window_len: int
    sampling: SamplingDefaults


@dataclass(frozen=True)
class FineRules:
    """Windows of the fine stage (transformers' BarkFineGenerationConfig)."""

    n_fine_codebooks: int
    max_fine_history_length: int
    max_fine_input_length: int
    sampling: SamplingDefaults


@dataclass(frozen=True)
class Config:
    """Everything that a checkpoint's two files say, consistent in itself.

    `normalize_text` is not of transformers: the model wants numbers and the like spelled in words,
    in the language of the text (True) or in one by its code.
    """

    semantic: GPTConfig
    coarse: GPTConfig
    fine: FineGPTConfig
    codec: CodecConfig
    semantic_rules: SemanticRules
    coarse_rules: CoarseRules
    fine_rules: FineRules
    codebook_size: int
    sample_rate_hz: int
    normalize_text: bool | str = False

    @property
    def semantic_to_coarse_ratio(self) -> float:
        """Coarse tokens (all codebooks) for each semantic token, as transformers computes it."""
        return (
            self.coarse_rules.coarse_rate_hz
            / self.semantic_rules.semantic_rate_hz
            * self.coarse_rules.n_coarse_codebooks
        )

    @property
    def max_text_tokens(self) -> int:
        """The longest text, in tokens."""
        return self.semantic_rules.max_input_semantic_length
