"""The backend whose operations are the Triton kernels of this folder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bark_fast.kernels.ops import Backend, Norm, Weight
from bark_fast.kernels.state import SamplingMetadata, TokenSpace
from bark_fast.kernels.triton import attention, codebook, embedding, linear, norm, sampling


class TritonBackend(Backend):
    """Launches the kernels; the operations that take no option are the modules' functions.

    Args:
        pdl: launch the kernels of decode steps as programmatic dependents (sm_90 and newer); see
            `launch`.
    """

    def __init__(self, *, pdl: bool = False) -> None:
        self.pdl = pdl

    layer_norm = staticmethod(norm.layer_norm)
    bidirectional_attention = staticmethod(attention.bidirectional_attention)
    codebook_sum = staticmethod(codebook.codebook_sum)
    random_words = staticmethod(sampling.random_words_of)
    decode_workspace = staticmethod(attention.decode_workspace)

    def embedding_sum(self, ids: Tensor, tables: Tensor, **options: Any) -> Tensor:
        return embedding.embedding_sum(ids, tables, **options, pdl=self.pdl)

    def sample(
        self, logits: Tensor, metadata: SamplingMetadata, space: TokenSpace, **options: Any
    ) -> Tensor:
        return sampling.sample(logits, metadata, space, **options, pdl=self.pdl)

    def fused_linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, **options: Any
    ) -> Tensor:
        return linear.fused_linear(x, weight, bias, **options, pdl=self.pdl)

    def qkv_to_pages(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        *,
        norm: Norm,
        k_pages: Tensor,
        v_pages: Tensor,
        slot_mapping: Tensor,
        decode: bool = False,
    ) -> Tensor:
        paged = linear.PagedKV(k_pages, v_pages, slot_mapping)
        q = linear.fused_linear(
            x, weight, bias, norm=norm, decode=decode, paged=paged, pdl=self.pdl
        )
        return q.view(len(x), k_pages.shape[1], k_pages.shape[3])

    def paged_attention(
        self, q: Tensor, k_pages: Tensor, v_pages: Tensor, **options: Any
    ) -> Tensor:
        return attention.paged_attention(q, k_pages, v_pages, **options, pdl=self.pdl)
