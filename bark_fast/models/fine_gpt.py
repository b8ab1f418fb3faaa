"""The fine transformer: every frame sees every frame, one embedding and one head a codebook."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.checkpoint.config import FineGPTConfig
from bark_fast.models.gpt import Block, Norm


class FineGPT:
    """Predicts one codebook of all frames of a window from the codebooks before it."""

    def __init__(self, config: FineGPTConfig, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self.config = config
        self.embeddings = [
            tensors[f"{prefix}.input_embeds_layers.{k}.weight"] for k in range(config.n_codes_total)
        ]
        self.positions = tensors[f"{prefix}.position_embeds_layer.weight"]
        self.blocks = [
            Block.from_tensors(tensors, f"{prefix}.layers.{i}") for i in range(config.num_layers)
        ]
        self.final_norm: Norm = (
            tensors[f"{prefix}.layernorm_final.weight"],
            tensors[f"{prefix}.layernorm_final.bias"],
        )
        # A tied head is not stored: head i is embedding i + 1 (BarkFineModel).
        self.heads = [
            tensors.get(f"{prefix}.lm_heads.{i}.weight", self.embeddings[i + 1])
            for i in range(config.n_codes_total - config.n_codes_given)
        ]

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def forward(self, codes: Tensor, codebook: int) -> Tensor:
        """Final states for predicting `codebook` of `codes` int64 [B, T, n_codes_total].

        Codebooks 0 .. codebook are read, the one to be predicted included: its ids are still the
        padding, or what an overlapping window wrote (BarkFineModel sums it too).

        Returns:
            [B, T, C], normalised.
        """
        b, t = codes.shape[:2]
        n_streams = codebook + 1
        x = kernels.embedding_sum(
            codes[..., :n_streams].permute(2, 0, 1).reshape(n_streams, b * t),
            self.embeddings[:n_streams],
            positions=torch.arange(t, device=codes.device).repeat(b),
            position_table=self.positions,
        )
        heads = (b, t, self.config.num_heads, self.config.head_size)
        for block in self.blocks:
            q, k, v = block.qkv_heads(x, self.config.num_heads)
            attended = kernels.attention(q.reshape(heads), k.reshape(heads), v.reshape(heads))
            x = block.finish(x, attended)
        return kernels.layer_norm(x, *self.final_norm).view(b, t, -1)

    def logits(self, states: Tensor, codebook: int, n_ids: int) -> Tensor:
        """Logits of ids 0 .. n_ids - 1 of `codebook` for states [N, C]; float32 [N, n_ids]."""
        head = self.heads[codebook - self.config.n_codes_given]
        return kernels.linear(states, head[:n_ids]).float()
