"""The fine transformer: every frame sees every frame, one embedding and one head a codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bark_fast.checkpoint.config import FineGPTConfig
from bark_fast.kernels import Backend, Norm
from bark_fast.models.block import Block


class FineGPT:
    """Predicts one codebook of all frames of a window from the codebooks before it."""

    def __init__(
        self,
        config: FineGPTConfig,
        tensors: Mapping[str, Tensor],
        prefix: str,
        *,
        n_ids: int,
        ops: Backend,
    ) -> None:
        """Take the tensors named `prefix.*`, and of the heads the first `n_ids` rows."""
        self.config = config
        self.ops = ops
        self.embeddings = torch.stack(
            [
                tensors[f"{prefix}.input_embeds_layers.{k}.weight"]
                for k in range(config.n_codes_total)
            ]
        )
        self.positions = tensors[f"{prefix}.position_embeds_layer.weight"]
        self.blocks = [
            Block.from_tensors(tensors, f"{prefix}.layers.{i}", ops=ops)
            for i in range(config.num_layers)
        ]
        self.final_norm: Norm = (
            tensors[f"{prefix}.layernorm_final.weight"],
            tensors[f"{prefix}.layernorm_final.bias"],
        )
        # A tied head is not stored: head i is embedding i + 1 (BarkFineModel).
        heads = (
            tensors.get(f"{prefix}.lm_heads.{i}.weight", self.embeddings[i + 1])
            for i in range(config.n_codes_total - config.n_codes_given)
        )
        self.heads = [ops.pack_weight(head[:n_ids]) for head in heads]

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def map_weights(self, change: Callable[[Any], Any]) -> None:
        """Put `change(weight)` in the place of every weight."""
        self.embeddings, self.positions = change(self.embeddings), change(self.positions)
        self.blocks = [block.map_weights(change) for block in self.blocks]
        weight, bias = self.final_norm
        self.final_norm = change(weight), None if bias is None else change(bias)
        self.heads = [change(head) for head in self.heads]

    def forward(self, codes: Tensor, codebook: int, *, wanted: Tensor | None = None) -> Tensor:
        """Return the final states for predicting `codebook` of `codes` int64 [B, T, n_codes_total].

        Codebooks 0 .. codebook are read, the one to be predicted included: its ids are still the
        padding, or what an overlapping window wrote (BarkFineModel sums it too).

        Args:
            wanted: int64 [N] of B T, the frames whose states are returned. The last block needs no
                more of the others than their keys and values.

        Returns:
            [B T, C], or [N, C], before the final norm.
        """
        b, t = codes.shape[:2]
        n_streams, ops = codebook + 1, self.ops
        x = ops.embedding_sum(
            codes[..., :n_streams].permute(2, 0, 1).reshape(n_streams, b * t),
            self.embeddings[:n_streams],
            positions=torch.arange(t, dtype=torch.int64, device=codes.device).repeat(b),
            position_table=self.positions,
        )
        heads = (self.config.num_heads, self.config.head_size)
        for block in self.blocks:
            qkv = ops.fused_linear(x, block.qkv, block.qkv_bias, norm=block.norm_1)
            q, k, v = qkv.view(b, t, 3, *heads).unbind(2)
            attended = ops.bidirectional_attention(q, k, v).flatten(0, 1)
            if wanted is not None and block is self.blocks[-1]:
                x, attended = x[wanted], attended[wanted]
            x = block.output_and_mlp(ops, x, attended)
        return x

    def logits(self, states: Tensor, codebook: int) -> Tensor:
        """Return logits [N, n_ids] of the ids of `codebook` for states [N, C]."""
        head = self.heads[codebook - self.config.n_codes_given]
        return self.ops.fused_linear(states, head, norm=self.final_norm)
