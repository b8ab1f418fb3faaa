"""The causal transformer of the semantic and coarse stages: GPT-2's blocks without dropout.

Prompts run packed, one after another without padding; the steps that follow run one token of each
sequence at a time, from a state that lives on the device. The kernels have a schedule for each, so
a sequence takes the same one whoever else is there. Keys and values go to the sequence's own pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.checkpoint.config import GPTConfig
from bark_fast.errors import InputError
from bark_fast.kernels import DecodeState, Impl, Norm, Weight
from bark_fast.models.upload import upload


@dataclass(frozen=True)
class Block:
    """The weights of one transformer block; a bias is None where the model has none."""

    norm_1: Norm
    qkv: Weight  # [3 C, C]
    qkv_bias: Tensor | None
    out: Weight  # [C, C]
    out_bias: Tensor | None
    norm_2: Norm
    fc_1: Weight  # [4 C, C]
    fc_1_bias: Tensor | None
    fc_2: Weight  # [C, 4 C]
    fc_2_bias: Tensor | None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str, *, impl: Impl) -> Block:
        """The block whose tensors have names that start with `prefix`, packed for `impl`."""

        def get(name: str) -> Tensor:
            return tensors[f"{prefix}.{name}"]

        def packed(name: str) -> Weight:
            return kernels.pack_weight(get(name), impl=impl)

        def bias(name: str) -> Tensor | None:
            return tensors.get(f"{prefix}.{name}.bias")

        return cls(
            norm_1=(get("layernorm_1.weight"), bias("layernorm_1")),
            qkv=packed("attn.att_proj.weight"),
            qkv_bias=bias("attn.att_proj"),
            out=packed("attn.out_proj.weight"),
            out_bias=bias("attn.out_proj"),
            norm_2=(get("layernorm_2.weight"), bias("layernorm_2")),
            fc_1=packed("mlp.in_proj.weight"),
            fc_1_bias=bias("mlp.in_proj"),
            fc_2=packed("mlp.out_proj.weight"),
            fc_2_bias=bias("mlp.out_proj"),
        )

    def map_weights(self, change: Callable[[Any], Any]) -> Block:
        """The same block with `change(weight)` in the place of every weight."""

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(changed(part) for part in value)
            return None if value is None else change(value)

        return Block(**{f.name: changed(getattr(self, f.name)) for f in fields(self)})

    def finish(
        self, x: Tensor, attended: Tensor, *, decode: bool, impl: Impl, pdl: bool = False
    ) -> Tensor:
        """What follows attention: output projection, residual, and the MLP with its own."""
        how: Any = {"decode": decode, "pdl": pdl, "impl": impl}
        attended = attended.reshape(x.shape)
        x = kernels.fused_linear(attended, self.out, self.out_bias, residual=x, **how)
        hidden = kernels.fused_linear(
            x, self.fc_1, self.fc_1_bias, norm=self.norm_2, gelu=True, **how
        )
        return kernels.fused_linear(hidden, self.fc_2, self.fc_2_bias, residual=x, **how)


def check_head_size(config: GPTConfig, impl: Impl) -> None:
    """Triton's blocks are powers of two, and 16 is the least that its products take; the native
    kernels take numbers by twos.

    Raises:
        InputError: this model's heads are of another size.
    """
    size = config.head_size
    if impl in ("native", "int8") and size % 2:
        raise InputError(
            'impl must be "cpu" or "torch" for a model whose hidden_size / num_heads is odd, got '
            f"impl={impl!r} and {config.hidden_size} / {config.num_heads} = {size}"
        )
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
    """A prompt, or the part of it that the cache does not hold.

    Attributes:
        ids: [K][n] token ids of K summed streams; -1 where a stream is silent.
        start: position of the first; so many tokens are in the cache already.
        pages: the sequence's pages, in order, with room for the new tokens.
    """

    ids: Sequence[Sequence[int]]
    start: int
    pages: Sequence[int]


@dataclass(frozen=True)
class PackedPrompts:
    """Chunks one after another, as the tensors that the kernels read."""

    ids: Tensor  # int64 [K, N]
    positions: Tensor  # int64 [N]
    slots: Tensor  # int64 [N], where each token's keys and values go
    block_tables: Tensor  # int64 [B, max_pages]
    query_starts: Tensor  # int64 [B + 1]
    kv_lengths: Tensor  # int64 [B]
    last: Tensor  # int64 [B], the last token of each sequence
    max_queries: int
    max_length: int

    @classmethod
    def pack(cls, chunks: Sequence[Chunk], page_size: int, device: torch.device) -> PackedPrompts:
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
        return cls(
            ids=upload(streams, device=device),
            positions=upload(positions, device=device),
            slots=upload(slots, device=device),
            block_tables=upload(tables, device=device),
            query_starts=upload(starts, device=device),
            kv_lengths=upload(lengths, device=device),
            last=upload([stop - 1 for stop in starts[1:]], device=device),
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
            Block.from_tensors(tensors, f"{prefix}.layers.{i}", impl=impl)
            for i in range(config.num_layers)
        ]
        self.final_norm: Norm = (
            tensors[f"{prefix}.layernorm_final.weight"],
            tensors.get(f"{prefix}.layernorm_final.bias"),
        )
        head = tensors[f"{prefix}.lm_head.weight"]
        self.head = kernels.pack_weight(head[torch.tensor(head_ids, device=head.device)], impl=impl)

    @property
    def n_columns(self) -> int:
        """Columns of the logits."""
        return self.head.shape[0]

    @property
    def impl(self) -> Impl:
        return self._impl

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def map_weights(self, change: Callable[[Any], Any]) -> None:
        """Put `change(weight)` in the place of every weight."""
        self.embedding, self.positions = change(self.embedding), change(self.positions)
        self.blocks = [block.map_weights(change) for block in self.blocks]
        weight, bias = self.final_norm
        self.final_norm = change(weight), None if bias is None else change(bias)
        self.head = change(self.head)

    def prefill(self, chunks: Sequence[Chunk], cache: KVPages) -> Tensor:
        """Run prompts, packed without padding, and store their keys and values.

        Returns:
            Logits after the last token of each, [B, len(head_ids)].
        """
        x, batch = self._states(chunks, cache)
        return self._logits(x[batch.last])

    def score(self, chunk: Chunk, cache: KVPages) -> Tensor:
        """Logits after every token of one sequence (teacher forcing), [T, len(head_ids)]."""
        return self._logits(self._states([chunk], cache)[0])

    def step(
        self,
        state: DecodeState,
        cache: KVPages,
        *,
        workspace: Tensor | None = None,
        pdl: bool = False,
    ) -> Tensor:
        """Run the next token of every row of `state`; nothing here asks the host.

        Args:
            workspace, pdl: as in `kernels.paged_attention`.

        Returns:
            Logits, [B, len(head_ids)]; of empty rows without meaning.
        """
        x = self._run(
            state.token_ids[None],
            state.positions,
            cache,
            slots=state.slots,
            decode=True,
            pdl=pdl,
            block_tables=state.block_tables,
            kv_lengths=state.kv_lengths,
            max_queries=1,
            # Lengths grow on the device; this is what they can come to.
            max_length=state.block_tables.shape[1] * state.page_size,
            workspace=workspace,
        )
        return self._logits(x, pdl=pdl)

    def _states(self, chunks: Sequence[Chunk], cache: KVPages) -> tuple[Tensor, PackedPrompts]:
        """The states of packed prompts, [N, C], before the final norm."""
        batch = PackedPrompts.pack(chunks, cache.page_size, self.device)
        x = self._run(
            batch.ids,
            batch.positions,
            cache,
            slots=batch.slots,
            decode=False,
            block_tables=batch.block_tables,
            query_starts=batch.query_starts,
            kv_lengths=batch.kv_lengths,
            max_queries=batch.max_queries,
            max_length=batch.max_length,
        )
        return x, batch

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: KVPages,
        *,
        slots: Tensor,
        decode: bool,
        pdl: bool = False,
        **attention: Any,
    ) -> Tensor:
        """The blocks: states [N, C] before the final norm."""
        impl = self._impl
        x = kernels.embedding_sum(
            ids,
            self.embedding.expand(len(ids), -1, -1),
            positions=positions,
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
                slots=slots,
                decode=decode,
                pdl=pdl,
                impl=impl,
            )
            attended = kernels.paged_attention(
                q, cache.keys[i], cache.values[i], decode=decode, pdl=pdl, impl=impl, **attention
            )
            x = block.finish(x, attended, decode=decode, pdl=pdl, impl=impl)
        return x

    def _logits(self, x: Tensor, *, pdl: bool = False) -> Tensor:
        # One row a sequence, whatever came before: always the decode schedule.
        return kernels.fused_linear(
            x, self.head, norm=self.final_norm, decode=True, pdl=pdl, impl=self._impl
        )
