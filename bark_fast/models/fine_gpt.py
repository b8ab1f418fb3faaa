"""The fine transformer: every frame sees every frame, one embedding and one head a codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.checkpoint.config import FineGPTConfig
from bark_fast.kernels import Impl, Norm
from bark_fast.models.gpt import Block, check_head_size


class FineGPT:
    """Predicts one codebook of all frames of a window from the codebooks before it."""

    def __init__(
        self,
        config: FineGPTConfig,
        tensors: Mapping[str, Tensor],
        prefix: str,
        *,
        n_ids: int,
        impl: Impl,
    ) -> None:
        """Take the tensors named `prefix.*`, and of the heads the first `n_ids` rows."""
        check_head_size(config, impl)
        self.config = config
        self._impl = impl
        self.embeddings = torch.stack(
            [
                tensors[f"{prefix}.input_embeds_layers.{k}.weight"]
                for k in range(config.n_codes_total)
            ]
        )
        self.positions = tensors[f"{prefix}.position_embeds_layer.weight"]
        self.blocks = [
            Block.from_tensors(tensors, f"{prefix}.layers.{i}", impl=impl)
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
        self.heads = [kernels.pack_weight(head[:n_ids], impl=impl) for head in heads]

    @property
    def impl(self) -> Impl:
        return self._impl

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

    def forward(self, codes: Tensor, codebook: int) -> Tensor:
        """Final states for predicting `codebook` of `codes` int64 [B, T, n_codes_total].

        Codebooks 0 .. codebook are read, the one to be predicted included: its ids are still the
        padding, or what an overlapping window wrote (BarkFineModel sums it too).

        Returns:
            [B, T, C], before the final norm.
        """
        b, t = codes.shape[:2]
        n_streams, impl = codebook + 1, self._impl
        x = kernels.embedding_sum(
            codes[..., :n_streams].permute(2, 0, 1).reshape(n_streams, b * t),
            self.embeddings[:n_streams],
            positions=torch.arange(t, device=codes.device).repeat(b),
            position_table=self.positions,
            impl=impl,
        )
        heads = (self.config.num_heads, self.config.head_size)
        for block in self.blocks:
            qkv = kernels.fused_linear(x, block.qkv, block.qkv_bias, norm=block.norm_1, impl=impl)
            q, k, v = qkv.view(b, t, 3, *heads).unbind(2)
            attended = kernels.bidirectional_attention(q, k, v, impl=impl)
            x = block.finish(x, attended, decode=False, impl=impl)
        return x.view(b, t, -1)

    def logits(self, states: Tensor, codebook: int) -> Tensor:
        """Logits of the ids of `codebook` for states [N, C]: [N, n_ids]."""
        head = self.heads[codebook - self.config.n_codes_given]
        return kernels.fused_linear(states, head, norm=self.final_norm, impl=self._impl)
