"""The backend whose every operation is a Triton kernel of this folder."""

from __future__ import annotations

from torch import Tensor

from bark_fast.kernels.ops import Backend, Norm, Weight
from bark_fast.kernels.triton import attention, codebook, embedding, linear, norm, sampling


class TritonBackend(Backend):
    """Launches the kernels; the operations that take no option are the modules' functions.

    Args:
        pdl: launch the kernels of decode steps as programmatic dependents (sm_90 and newer).
    """

    def __init__(self, *, pdl: bool = False) -> None:
        self.pdl = pdl

    embedding_sum = staticmethod(embedding.embedding_sum)
    layer_norm = staticmethod(norm.layer_norm)
    bidirectional_attention = staticmethod(attention.bidirectional_attention)
    codebook_sum = staticmethod(codebook.codebook_sum)
    sample = staticmethod(sampling.sample)
    random_words = staticmethod(sampling.random_words_of)
    decode_workspace = staticmethod(attention.decode_workspace)

    def fused_linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
        residual: Tensor | None = None,
        decode: bool = False,
    ) -> Tensor:
        return linear.fused_linear(
            x, weight, bias, norm=norm, gelu=gelu, residual=residual, decode=decode, pdl=self.pdl
        )

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
        q = linear.fused_linear(
            x,
            weight,
            bias,
            norm=norm,
            decode=decode,
            pdl=self.pdl,
            paged=linear.PagedKV(k_pages, v_pages, slot_mapping),
        )
        return q.view(len(x), k_pages.shape[1], k_pages.shape[3])

    def paged_attention(
        self,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        block_tables: Tensor,
        seq_lens: Tensor,
        max_queries: int,
        max_length: int,
        cu_seqlens_q: Tensor | None = None,
        decode: bool = False,
        workspace: Tensor | None = None,
    ) -> Tensor:
        return attention.paged_attention(
            q,
            k_pages,
            v_pages,
            block_tables=block_tables,
            seq_lens=seq_lens,
            max_queries=max_queries,
            max_length=max_length,
            cu_seqlens_q=cu_seqlens_q,
            decode=decode,
            workspace=workspace,
            pdl=self.pdl,
        )
