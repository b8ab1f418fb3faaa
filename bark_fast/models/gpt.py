"""The causal transformer of the semantic and coarse stages: GPT-2's blocks without dropout.

It runs on packed tokens: a batch is the new tokens of several sequences one after another, each
attending to its own pages of the cache, so that prompts and single decode steps mix freely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.checkpoint.config import GPTConfig

Norm = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Block:
    """The weights of one transformer block; a bias is None where the model has none."""

    norm_1: Norm
    qkv: Tensor  # [3 C, C]
    qkv_bias: Tensor | None
    out: Tensor  # [C, C]
    out_bias: Tensor | None
    norm_2: Norm
    fc_1: Tensor  # [4 C, C]
    fc_1_bias: Tensor | None
    fc_2: Tensor  # [C, 4 C]
    fc_2_bias: Tensor | None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> Block:
        """The block whose tensors have names that start with `prefix`."""

        def get(name: str) -> Tensor:
            return tensors[f"{prefix}.{name}"]

        def bias(name: str) -> Tensor | None:
            return tensors.get(f"{prefix}.{name}.bias")

        return cls(
            norm_1=(get("layernorm_1.weight"), bias("layernorm_1")),
            qkv=get("attn.att_proj.weight"),
            qkv_bias=bias("attn.att_proj"),
            out=get("attn.out_proj.weight"),
            out_bias=bias("attn.out_proj"),
            norm_2=(get("layernorm_2.weight"), bias("layernorm_2")),
            fc_1=get("mlp.in_proj.weight"),
            fc_1_bias=bias("mlp.in_proj"),
            fc_2=get("mlp.out_proj.weight"),
            fc_2_bias=bias("mlp.out_proj"),
        )

    def qkv_heads(self, x: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Layer norm and projection: queries, keys and values, each [N, H, D]."""
        qkv = kernels.linear(x, self.qkv, self.qkv_bias, norm=self.norm_1)
        q, k, v = qkv.view(len(x), 3, num_heads, -1).unbind(1)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: output projection, residual, and the MLP with its own."""
        x = kernels.linear(attended.reshape(x.shape), self.out, self.out_bias, residual=x)
        hidden = kernels.linear(x, self.fc_1, self.fc_1_bias, norm=self.norm_2, gelu=True)
        return kernels.linear(hidden, self.fc_2, self.fc_2_bias, residual=x)


@dataclass(frozen=True)
class KVPages:
    """The paged keys and values of one model: two tensors [layers, P, H, page_size, D]."""

    keys: Tensor
    values: Tensor

    @property
    def page_size(self) -> int:
        return self.keys.shape[3]

    @classmethod
    def allocate(
        cls,
        config: GPTConfig,
        n_pages: int,
        page_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVPages:
        shape = (config.num_layers, n_pages, config.num_heads, page_size, config.head_size)
        return cls(
            torch.empty(shape, dtype=dtype, device=device),
            torch.empty(shape, dtype=dtype, device=device),
        )


@dataclass(frozen=True)
class Chunk:
    """The new tokens of one sequence.

    Attributes:
        ids: [K][n] token ids of K summed streams; -1 where a stream is silent.
        start: position of the first; so many tokens are in the cache already.
        pages: the sequence's pages, in order, with room for the new tokens.
    """

    ids: Sequence[Sequence[int]]
    start: int
    pages: Sequence[int]


@dataclass(frozen=True)
class PackedBatch:
    """Chunks as the tensors that the kernels read."""

    ids: Tensor  # int64 [K, N]
    positions: Tensor  # int64 [N]
    slots: Tensor  # int64 [N], where each token's keys and values go
    block_tables: Tensor  # int64 [B, max_pages]
    query_starts: list[int]  # B + 1
    kv_lengths: list[int]  # B

    @classmethod
    def pack(cls, chunks: Sequence[Chunk], page_size: int, device: torch.device) -> PackedBatch:
        streams: list[list[int]] = [[] for _ in chunks[0].ids]
        positions: list[int] = []
        slots: list[int] = []
        starts, lengths = [0], []
        for chunk in chunks:
            for stream, new in zip(streams, chunk.ids, strict=True):
                stream.extend(new)
            stop = chunk.start + len(chunk.ids[0])
            positions.extend(range(chunk.start, stop))
            slots.extend(
                chunk.pages[p // page_size] * page_size + p % page_size
                for p in range(chunk.start, stop)
            )
            starts.append(len(positions))
            lengths.append(stop)
        widest = max(len(chunk.pages) for chunk in chunks)
        tables = [list(chunk.pages) + [0] * (widest - len(chunk.pages)) for chunk in chunks]

        def tensor(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        return cls(
            tensor(streams), tensor(positions), tensor(slots), tensor(tables), starts, lengths
        )


class GPT:
    """A causal transformer with learned positions and a language-model head."""

    def __init__(
        self,
        config: GPTConfig,
        tensors: Mapping[str, Tensor],
        prefix: str,
        *,
        head_ids: Sequence[int] | None = None,
    ) -> None:
        """Take the tensors named `prefix.*`; with `head_ids`, keep these rows of the head alone,
        in this order."""
        self.config = config
        self.embedding = tensors[f"{prefix}.input_embeds_layer.weight"]
        self.positions = tensors[f"{prefix}.position_embeds_layer.weight"]
        self.blocks = [
            Block.from_tensors(tensors, f"{prefix}.layers.{i}") for i in range(config.num_layers)
        ]
        self.final_norm: Norm = (
            tensors[f"{prefix}.layernorm_final.weight"],
            tensors.get(f"{prefix}.layernorm_final.bias"),
        )
        head = tensors[f"{prefix}.lm_head.weight"]
        self.head = head if head_ids is None else head[torch.tensor(head_ids, device=head.device)]

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def forward(self, batch: PackedBatch, cache: KVPages) -> Tensor:
        """Run the new tokens, store their keys and values, and return the final state of the last
        token of each sequence, normalised: [B, C]."""
        x = kernels.embedding_sum(
            batch.ids,
            [self.embedding] * len(batch.ids),
            positions=batch.positions,
            position_table=self.positions,
        )
        for i, block in enumerate(self.blocks):
            q, k, v = block.qkv_heads(x, self.config.num_heads)
            kernels.write_pages(k, v, cache.keys[i], cache.values[i], batch.slots)
            attended = kernels.paged_attention(
                q,
                cache.keys[i],
                cache.values[i],
                block_tables=batch.block_tables,
                query_starts=batch.query_starts,
                kv_lengths=batch.kv_lengths,
            )
            x = block.finish(x, attended)
        last = [stop - 1 for stop in batch.query_starts[1:]]
        return kernels.layer_norm(x[last], *self.final_norm)

    def logits(self, state: Tensor, first_rows: Tensor, n_rows: int) -> Tensor:
        """Logits of `n_rows` ids from `first_rows` [B] on, for each of the states [B, C]; float32
        [B, n_rows], -inf past the last id."""
        return kernels.linear_rows(
            state, self.head, first_rows, n_rows=n_rows, last_row=len(self.head)
        )
