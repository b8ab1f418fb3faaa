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

from bark_fast.checkpoint.config import GPTConfig
from bark_fast.kernels import Backend, DecodeState, Norm
from bark_fast.models.block import Block
from bark_fast.models.transfer import to_device


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
class PackedShape:
    """The size that packed prompts are padded to, so that one graph serves many batches.

    Attributes:
        tokens: of all prompts together.
        sequences: at most one fewer prompts.
        pages: of the longest sequence.
    """

    tokens: int
    sequences: int
    pages: int


@dataclass(frozen=True)
class PackedPrompts:
    """Chunks one after another, as the tensors that the kernels read.

    Padding is a sequence of its own behind the others: tokens without ids that are stored nowhere
    and attend to nothing. Sequences behind that one are empty.
    """

    ids: Tensor  # int64 [K, N]
    positions: Tensor  # int64 [N]
    slot_mapping: Tensor  # int64 [N], where each token's keys and values go
    block_tables: Tensor  # int64 [B, max_pages]
    cu_seqlens_q: Tensor  # int64 [B + 1]
    seq_lens: Tensor  # int64 [B]
    last: Tensor  # int64 [B], the last token of each sequence
    max_queries: int
    max_length: int

    @classmethod
    def pack(
        cls, chunks: Sequence[Chunk], page_size: int, *, shape: PackedShape | None = None
    ) -> PackedPrompts:
        """Return the chunks on the host, padded to `shape` if there is one."""
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
        last = [stop - 1 for stop in starts[1:]]
        max_queries, max_length = max(len(chunk.ids[0]) for chunk in chunks), max(lengths)
        widest = max(len(chunk.pages) for chunk in chunks)
        tables = [list(chunk.pages) for chunk in chunks]
        if shape is not None:
            n, empty = shape.tokens - len(positions), shape.sequences - len(chunks)
            streams = [[*stream, *[-1] * n] for stream in streams]
            positions, slots = [*positions, *[0] * n], [*slots, *[-1] * n]
            starts, lengths = [*starts, *[shape.tokens] * empty], [*lengths, *[0] * empty]
            last, tables = [*last, *[0] * empty], [*tables, *[[]] * empty]
            max_queries, widest = max(max_queries, n), shape.pages

        def tensor(values: Sequence[Any]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device="cpu")

        return cls(
            ids=tensor(streams),
            positions=tensor(positions),
            slot_mapping=tensor(slots),
            block_tables=tensor([[*table, *[0] * (widest - len(table))] for table in tables]),
            cu_seqlens_q=tensor(starts),
            seq_lens=tensor(lengths),
            last=tensor(last),
            max_queries=max_queries,
            max_length=max_length,
        )

    @classmethod
    def nothing(
        cls, n_streams: int, shape: PackedShape, device: torch.device, *, longest: int
    ) -> PackedPrompts:
        """Return tensors of that shape to be filled with prompts of up to `longest` positions;
        until then they hold padding alone."""

        def full(value: int, *size: int) -> Tensor:
            return torch.full(size, value, dtype=torch.int64, device=device)

        starts = full(shape.tokens, shape.sequences + 1)
        starts[:1] = 0
        return cls(
            ids=full(-1, n_streams, shape.tokens),
            positions=full(0, shape.tokens),
            slot_mapping=full(-1, shape.tokens),
            block_tables=full(0, shape.sequences, shape.pages),
            cu_seqlens_q=starts,
            seq_lens=full(0, shape.sequences),
            last=full(0, shape.sequences),
            max_queries=min(shape.tokens, longest),
            max_length=longest,
        )

    def tensors(self) -> list[Tensor]:
        """Return the tensors, in the order of their names above."""
        values = [getattr(self, f.name) for f in fields(self)]
        return [value for value in values if isinstance(value, Tensor)]

    def on(self, device: torch.device) -> PackedPrompts:
        """Return the same on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: to_device(value, device=device) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return PackedPrompts(**moved)


class GPT:
    """A causal transformer with learned positions and a language-model head."""

    def __init__(
        self,
        config: GPTConfig,
        tensors: Mapping[str, Tensor],
        prefix: str,
        *,
        head_ids: Sequence[int],
        ops: Backend,
    ) -> None:
        """Take the tensors named `prefix.*`, and of the head the rows of the ids that can be
        sampled, in the order of `head_ids`."""
        self.config = config
        self.ops = ops
        self.embedding = tensors[f"{prefix}.input_embeds_layer.weight"]
        self.positions = tensors[f"{prefix}.position_embeds_layer.weight"]
        self.blocks = [
            Block.from_tensors(tensors, f"{prefix}.layers.{i}", ops=ops)
            for i in range(config.num_layers)
        ]
        self.final_norm: Norm = (
            tensors[f"{prefix}.layernorm_final.weight"],
            tensors.get(f"{prefix}.layernorm_final.bias"),
        )
        head = tensors[f"{prefix}.lm_head.weight"]
        rows = torch.tensor(head_ids, dtype=torch.int64, device=head.device)
        self.head = ops.pack_weight(head[rows])

    @property
    def n_columns(self) -> int:
        """Columns of the logits."""
        return self.head.shape[0]

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

    def prefill(self, batch: PackedPrompts, cache: KVPages) -> Tensor:
        """Run packed prompts, on the model's device, and store their keys and values.

        Returns:
            Logits after the last token of each, [B, len(head_ids)].
        """
        return self._logits(self._states(batch, cache, wanted=batch.last))

    def score(self, chunk: Chunk, cache: KVPages) -> Tensor:
        """Return logits after every token of one sequence (teacher forcing), [T, len(head_ids)]."""
        batch = PackedPrompts.pack([chunk], cache.page_size).on(self.device)
        return self._logits(self._states(batch, cache))

    def step(
        self,
        state: DecodeState,
        cache: KVPages,
        *,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """Run the next token of every row of `state`; nothing here asks the host.

        Args:
            workspace: from `Backend.decode_workspace`, to spare its allocation.

        Returns:
            Logits, [B, len(head_ids)]; of empty rows without meaning.
        """
        x = self._run(
            state.token_ids[None],
            state.positions,
            cache,
            slot_mapping=state.slot_mapping,
            decode=True,
            block_tables=state.block_tables,
            seq_lens=state.seq_lens,
            max_queries=1,
            # Lengths grow on the device; this is what they can come to.
            max_length=state.block_tables.shape[1] * state.page_size,
            workspace=workspace,
        )
        return self._logits(x)

    def _states(
        self, batch: PackedPrompts, cache: KVPages, *, wanted: Tensor | None = None
    ) -> Tensor:
        """Return the states of packed prompts, or of the tokens `wanted`, before the final norm."""
        return self._run(
            batch.ids,
            batch.positions,
            cache,
            slot_mapping=batch.slot_mapping,
            decode=False,
            block_tables=batch.block_tables,
            cu_seqlens_q=batch.cu_seqlens_q,
            seq_lens=batch.seq_lens,
            max_queries=batch.max_queries,
            max_length=batch.max_length,
            wanted=wanted,
        )

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: KVPages,
        *,
        slot_mapping: Tensor,
        decode: bool,
        workspace: Tensor | None = None,
        wanted: Tensor | None = None,
        **attention: Any,
    ) -> Tensor:
        """Run the blocks; return the states [N, C] before the final norm.

        Args:
            wanted: int64 [M], the tokens whose states [M, C] are returned instead. The last block
                needs no more of the others than their keys and values.
        """
        ops = self.ops
        x = ops.embedding_sum(
            ids,
            self.embedding.expand(len(ids), -1, -1),
            positions=positions,
            position_table=self.positions,
        )
        for i, block in enumerate(self.blocks):
            q = ops.qkv_to_pages(
                x,
                block.qkv,
                block.qkv_bias,
                norm=block.norm_1,
                k_pages=cache.keys[i],
                v_pages=cache.values[i],
                slot_mapping=slot_mapping,
                decode=decode,
            )
            attended = ops.paged_attention(
                q, cache.keys[i], cache.values[i], decode=decode, workspace=workspace, **attention
            )
            if wanted is not None and block is self.blocks[-1]:
                x, attended = x[wanted], attended[wanted]
            x = block.output_and_mlp(ops, x, attended, decode=decode, workspace=workspace)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        # One row a sequence, whatever came before: always the decode schedule.
        return self.ops.fused_linear(x, self.head, norm=self.final_norm, decode=True)
