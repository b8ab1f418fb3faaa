"""The fastest CPU backend: `csrc/native.c`, compiled at first use and called through ctypes.

A decode step of Bark is some fifty products of one row, which read the weights once. Here a product
takes its layer norm, its residual and the writing of keys and values along, one query's attention
reads its pages where they lie, and attention over a whole window keeps its scores in the cache.

Measured on 2 cores (AMD EPYC, Zen 5, torch 2.13), in ms, against `onednn.py`:

                                              float32         bfloat16
    four products of 12 layers, 1 row       8.7 /  7.6      4.8 /  3.7   (reading: 6.2 / 3.1)
        16 rows                            11.4 / 10.8      6.0 /  5.2
        1 024 rows                          384 /  392      191 /  190
    fine attention, 1 024 frames           18.4 /  8.9     18.8 /  5.7
    decode attention, 16 x 600 keys         2.3 /  0.8      5.7 /  0.4

With AVX2 (AMD EPYC, Zen 3, 2 cores), a product of 2304 x 768 in float32, in ms: 0.36 / 0.16 for one
row, 0.75 / 0.69 for 16, but 26 / 37 for 1 024, where oneDNN blocks better.

`why_not` says what a machine lacks (`build` finds out); then `onednn` serves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bark_fast.kernels.cpu import build
from bark_fast.kernels.cpu.build import UnavailableError
from bark_fast.kernels.cpu.native_codec import NativeCodec
from bark_fast.kernels.cpu.operations import (
    KIND,
    Attention,
    EmbeddingSum,
    Linear,
    Sample,
    pointer,
)
from bark_fast.kernels.cpu.program import is_recording, pack, run
from bark_fast.kernels.ops import LAYER_NORM_EPS, Norm, Weight, noise_positions
from bark_fast.kernels.reference import TorchBackend
from bark_fast.kernels.state import DecodeState, PackedWeight, SamplingMetadata, TokenSpace


def why_not(dtype: torch.dtype, *, int8: bool = False) -> str | None:
    """Return what keeps this machine from running `dtype` here; None if nothing does.

    Args:
        int8: with weights in 8 bits.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it has float32 and bfloat16, not {dtype}"
    try:
        library = build.load()
    except UnavailableError as error:
        return str(error)
    if dtype == torch.bfloat16 and not library.has_bfloat16():
        return "bfloat16 needs a CPU with avx512_bf16"
    if int8 and not library.has_int8():
        return "int8 needs a CPU with avx512_vnni"
    return None


def why_slow(dtype: torch.dtype) -> str | None:
    """Return what keeps this machine from running `dtype` here though its CPU could."""
    has_bfloat16 = dtype == torch.bfloat16 and "avx512_bf16" in build.cpu_flags()
    if not build.suits_cpu() or not (dtype == torch.float32 or has_bfloat16):
        return None
    lacking = build.loaded()
    return str(lacking) if isinstance(lacking, UnavailableError) else None


class NativeBackend(TorchBackend):
    """The operations of `native.c`, and plain torch for those that it lacks."""

    int8 = False
    codec = NativeCodec()

    def pack_weight(self, weight: Tensor) -> Weight:
        return pack(weight, int8=self.int8)

    def embedding_sum(
        self, ids: Tensor, tables: Tensor, *, positions: Tensor, position_table: Tensor
    ) -> Tensor:
        ids = ids if ids.stride(1) == 1 else _contiguous(ids)
        streams, rows = ids.shape
        width = tables.shape[2]
        y = torch.empty(rows, width, dtype=tables.dtype, device="cpu")
        operation = EmbeddingSum(
            kind=KIND["EMBEDDING_SUM"], half=y.dtype == torch.bfloat16, y=y.data_ptr(),
            ids=ids.data_ptr(), tables=tables.data_ptr(), positions=positions.data_ptr(),
            position_table=position_table.data_ptr(), streams=streams, rows=rows, width=width,
            ids_stride=ids.stride(0), table_stride=tables.stride(0),
        )  # fmt: skip
        run(operation, y, ids, tables, positions, position_table)
        return y

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
        workspace: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(weight, PackedWeight):
            return super().fused_linear(
                x, weight, bias, norm=norm, gelu=gelu, residual=residual, decode=decode
            )
        operation, y, held = _linear(x, weight, bias, norm)
        operation.gelu, operation.residual = gelu, pointer(residual)
        run(operation, held, residual)
        return y

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
        """Do as `Backend.qkv_to_pages` says; the result is a view with a row stride of 3 C."""
        if not isinstance(weight, PackedWeight):
            return super().qkv_to_pages(
                x, weight, bias, norm=norm, k_pages=k_pages, v_pages=v_pages,
                slot_mapping=slot_mapping, decode=decode,
            )  # fmt: skip
        _, heads, page_size, d = k_pages.shape
        operation, y, held = _linear(x, weight, bias, norm)
        operation.k_pages, operation.v_pages = k_pages.data_ptr(), v_pages.data_ptr()
        operation.slot_mapping = slot_mapping.data_ptr()
        operation.heads, operation.page_size, operation.d = heads, page_size, d
        run(operation, held, k_pages, v_pages, slot_mapping)
        return y.view(len(x), 3, heads, d)[:, 0]

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
        _check_pairs(q)
        _, heads, page_size, d = k_pages.shape
        out = torch.empty(q.shape[0], heads, d, dtype=q.dtype, device="cpu")
        one_each = decode or cu_seqlens_q is None
        starts = None if one_each else cu_seqlens_q
        operation = Attention(
            kind=KIND["DECODE_ATTENTION" if one_each else "PAGED_ATTENTION"],
            half=q.dtype == torch.bfloat16, out=out.data_ptr(), q=q.data_ptr(),
            keys=k_pages.data_ptr(), values=v_pages.data_ptr(), q_stride=q.stride(0),
            tables=block_tables.data_ptr(), starts=pointer(starts), lengths=seq_lens.data_ptr(),
            batch=seq_lens.shape[0], max_pages=block_tables.stride(0), page_size=page_size,
            heads=heads, d=d,
        )  # fmt: skip
        run(operation, out, q, k_pages, v_pages, block_tables, starts, seq_lens)
        return out

    def bidirectional_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _check_pairs(q)
        batch, tokens, heads, d = q.shape
        strides = (tokens * q.stride(1), q.stride(1), d, 1)
        if any(t.stride() != strides for t in (q, k, v)):
            q, k, v = (t.contiguous() for t in (q, k, v))
        out = torch.empty(batch, tokens, heads, d, dtype=q.dtype, device="cpu")
        ends = (batch + 1) * tokens
        starts = torch.arange(0, ends, tokens, dtype=torch.int64, device="cpu")
        lengths = torch.full((batch,), tokens, dtype=torch.int64, device="cpu")
        operation = Attention(
            kind=KIND["BIDIRECTIONAL_ATTENTION"], half=q.dtype == torch.bfloat16,
            out=out.data_ptr(), q=q.data_ptr(), keys=k.data_ptr(), values=v.data_ptr(),
            q_stride=q.stride(1), starts=starts.data_ptr(), lengths=lengths.data_ptr(),
            batch=batch, page_size=tokens, heads=heads, d=d,
        )  # fmt: skip
        run(operation, out, q, k, v, starts, lengths)
        return out

    def sample(
        self,
        logits: Tensor,
        metadata: SamplingMetadata,
        space: TokenSpace,
        *,
        positions: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor:
        logits = _contiguous(logits)
        rows, columns = logits.shape
        chosen = torch.empty(rows, dtype=torch.int64, device="cpu")
        places = noise_positions(positions, state)
        operation = Sample(
            kind=KIND["SAMPLE"], half=logits.dtype == torch.bfloat16, chosen=chosen.data_ptr(),
            logits=logits.data_ptr(), rows=rows, columns=columns,
            temperature=metadata.temperature.data_ptr(), top_p=metadata.top_p.data_ptr(),
            top_k=metadata.top_k.data_ptr(), seeds=metadata.seeds.data_ptr(),
            suno_rules=metadata.suno_rules.data_ptr(), positions=places.data_ptr(),
            stage=space.stage, n_ranges=space.n_ranges, range_size=space.range_size,
        )  # fmt: skip
        if space.has_end:
            operation.min_eos_p = metadata.min_eos_p.data_ptr()
            operation.min_new_tokens = metadata.min_new_tokens.data_ptr()
        if state is not None:
            for name in ("finished", "token_ids", "seq_lens", "slot_mapping", "num_generated",
                         "limits", "history"):  # fmt: skip
                setattr(operation, name, getattr(state, name).data_ptr())
            operation.state_positions = state.positions.data_ptr()
            operation.tables = state.block_tables.data_ptr()
            operation.max_pages = state.block_tables.stride(0)
            operation.page_size, operation.first_id = state.page_size, space.first_id
            operation.history_width = state.history.shape[1]
        run(operation, chosen, logits, metadata, places, state)
        return chosen

    def random_words(self, seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
        width = -(-n_ids // 64) * 64
        words = torch.empty(len(seeds), width, dtype=torch.int32, device="cpu")
        build.load().words_of_rows(
            words.data_ptr(), seeds.data_ptr(), positions.data_ptr(), len(seeds), width, stage
        )
        return words[:, :n_ids].to(torch.int64) & 0xFFFFFFFF


class Int8Backend(NativeBackend):
    """The native operations with the weights of products in 8 bits."""

    int8 = True


def _linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, norm: Norm | None
) -> tuple[Linear, Tensor, Any]:
    """Return a product as an operation, its result, and the tensors that it needs."""
    n, k = weight.shape
    x = _contiguous(x)
    y = torch.empty(x.shape[0], n, dtype=x.dtype, device="cpu")
    gamma, beta = norm or (None, None)
    operation = Linear(
        kind=KIND["LINEAR"], half=y.dtype == torch.bfloat16, y=y.data_ptr(), x=x.data_ptr(),
        panels=weight.panels.data_ptr(), scales=pointer(weight.scales),
        excess=pointer(weight.excess), bias=pointer(bias), norm_weight=pointer(gamma),
        norm_bias=pointer(beta), eps=LAYER_NORM_EPS, rows=x.shape[0], n=n, k=k, x_stride=k,
    )  # fmt: skip
    return operation, y, (y, x, weight, bias, norm)


def _check_pairs(q: Tensor) -> None:
    if q.dtype == torch.bfloat16 and q.shape[-1] % 2:
        raise ValueError(f"bfloat16 heads must have an even size, got {q.shape[-1]}")


def _contiguous(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x
    assert not is_recording(), "a copy would not be repeated"
    return x.contiguous()
