"""The causal transformer of the semantic and coarse stages: GPT-2's blocks without dropout.

It runs on packed tokens: a batch is the new tokens of several sequences one after another, each
attending to its own pages of the cache. Prompts and single decode steps run in batches of their
own, because the kernels have a schedule for each: a sequence then takes the same one whoever else
is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.checkpoint.config import GPTConfig
from bark_fast.kernels import Impl, Norm
from bark_fast.types import InputError


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

    def finish(self, x: Tensor, attended: Tensor, *, decode: bool, impl: Impl) -> Tensor:
        """What follows attention: output projection, residual, and the MLP with its own."""
        x = kernels.fused_linear(
            attended.reshape(x.shape),
            self.out,
            self.out_bias,
            residual=x,
            decode=decode,
            impl=impl,
        )
        hidden = kernels.fused_linear(
            x, self.fc_1, self.fc_1_bias, norm=self.norm_2, gelu=True, decode=decode, impl=impl
        )
        return kernels.fused_linear(
            hidden, self.fc_2, self.fc_2_bias, residual=x, decode=decode, impl=impl
        )


def check_head_size(config: GPTConfig, impl: Impl) -> None:
    """Triton's blocks are powers of two, and 16 is the least that its products take.

    Raises:
        InputError: this model's heads are of another size.
    """
    size = config.head_size
    if impl == "triton" and (size < 16 or size & (size - 1)):
        raise InputError(
            'impl must be "torch" for a model whose hidden_size / num_heads is not a power of two '
            f"from 16 on, got impl='triton' and {config.hidden_size} / {config.num_heads} = {size}"
        )


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

    @property
    def is_step(self) -> bool:
        return len(self.ids[0]) == 1


@dataclass(frozen=True)
class PackedBatch:
    """Chunks as the tensors that the kernels read: all of one token, or all of several."""

    ids: Tensor  # int64 [K, N]
    positions: Tensor  # int64 [N]
    slots: Tensor  # int64 [N], where each token's keys and values go
    block_tables: Tensor  # int64 [B, max_pages]
    query_starts: Tensor  # int64 [B + 1]
    kv_lengths: Tensor  # int64 [B]
    last: Tensor  # int64 [B], the last token of each sequence
    max_queries: int
    max_length: int

    @property
    def decode(self) -> bool:
        """Whether these are single steps."""
        return self.max_queries == 1

    @classmethod
    def pack(cls, chunks: Sequence[Chunk], page_size: int, device: torch.device) -> PackedBatch:
        assert len({chunk.is_step for chunk in chunks}) == 1, "prompts and steps do not mix"
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
            ids=tensor(streams),
            positions=tensor(positions),
            slots=tensor(slots),
            block_tables=tensor(tables),
            query_starts=tensor(starts),
            kv_lengths=tensor(lengths),
            last=tensor([stop - 1 for stop in starts[1:]]),
            max_queries=max(len(chunk.ids[0]) for chunk in chunks),
            max_length=max(lengths),
        )


class GPT:
    """A causal transformer with learned positions and a language-model head."""

    def __init__(
        self,
        config: GPTConfig,
        tensors: Mapping[str, Tensor],
        prefix: str,
        *,
        head_ids: Sequence[int],
        impl: Impl,
    ) -> None:
        """Take the tensors named `prefix.*`, and of the head the rows of the ids that can be
        sampled, in the order of `head_ids`."""
        check_head_size(config, impl)
        self.config = config
        self._impl = impl
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
        self.head = head[torch.tensor(head_ids, device=head.device)]

    @property
    def impl(self) -> Impl:
        return self._impl

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def run(self, chunks: Sequence[Chunk], cache: KVPages) -> Tensor:
        """Logits after the last token of each chunk, [B, len(head_ids)]; prompts and steps in any
        order."""
        logits = None
        for is_step in (False, True):
            rows = [i for i, chunk in enumerate(chunks) if chunk.is_step == is_step]
            if not rows:
                continue
            batch = PackedBatch.pack([chunks[i] for i in rows], cache.page_size, self.device)
            part = self.forward(batch, cache)
            if len(rows) == len(chunks):
                return part
            if logits is None:
                logits = part.new_empty(len(chunks), part.shape[1])
            logits[rows] = part
        assert logits is not None, "there must be a chunk"
        return logits

    def forward(self, batch: PackedBatch, cache: KVPages) -> Tensor:
        """Run the new tokens, store their keys and values, and return the logits after the last
        token of each sequence: [B, len(head_ids)]."""
        impl, decode = self._impl, batch.decode
        x = kernels.embedding_sum(
            batch.ids,
            self.embedding.expand(len(batch.ids), -1, -1),
            positions=batch.positions,
            position_table=self.positions,
            impl=impl,
        )
        for i, block in enumerate(self.blocks):
            q = kernels.qkv_to_pages(
                x,
                block.qkv,
                block.qkv_bias,
                norm=block.norm_1,
                k_pages=cache.keys[i],
                v_pages=cache.values[i],
                slots=batch.slots,
                decode=decode,
                impl=impl,
            )
            attended = kernels.paged_attention(
                q,
                cache.keys[i],
                cache.values[i],
                block_tables=batch.block_tables,
                query_starts=batch.query_starts,
                kv_lengths=batch.kv_lengths,
                max_queries=batch.max_queries,
                max_length=batch.max_length,
                decode=decode,
                impl=impl,
            )
            x = block.finish(x, attended, decode=decode, impl=impl)
        # One row a sequence from here on, whatever came before.
        return kernels.fused_linear(
            x[batch.last], self.head, norm=self.final_norm, decode=True, impl=impl
        )
