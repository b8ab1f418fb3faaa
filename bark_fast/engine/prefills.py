"""Prompts of a causal stage as CUDA graphs, for a few numbers of tokens.

A prefill of bark is 171 launches. The host needs some 17 us for each, 2.9 ms together, and a GPU
that does 400 TFLOP/s needs 1.5 us a token (2 x 302 M operations): below about 1 900 tokens the
host is the slower one. So packed prompts of up to that many are padded to the next of a few sizes;
larger batches run as they are. Sizes are 320 tokens apart: bark's shortest prompt has 257, and
tiles of 128 rows make a part of the padding free. Prompts of which all but the last page is known
already have a few tokens each, and a size for many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bark_fast.engine.graphs import GraphRunner, Step
from bark_fast.kernels import SamplingMetadata
from bark_fast.models.gpt import KVPages, PackedPrompts, PackedShape
from bark_fast.models.transfer import fill
from bark_fast.stages.causal import CausalStage, CausalTask
from bark_fast.stages.sampling import metadata_of

_FEW_TOKENS, _STEP, _MOST = 64, 320, 1920
# One is padding. No more prompts of 257 fit; short ones may be many, with few queries to each.
_SEQUENCES, _SHORT_SEQUENCES = 8, 32


def prefill_shapes(max_tokens: int, n_pages: int) -> list[PackedShape]:
    """Return the shapes to capture where batches have at most `max_tokens`, the least first.

    Args:
        n_pages: of the longest sequence.
    """
    shapes = [PackedShape(_FEW_TOKENS, _SHORT_SEQUENCES, n_pages)]
    for tokens in range(_STEP, min(_MOST, max_tokens + _STEP - 1) + 1, _STEP):
        shapes.append(PackedShape(tokens, _SEQUENCES, n_pages))
    return shapes


@dataclass(frozen=True)
class _Captured:
    """A graph and the tensors that it reads and writes."""

    prompts: PackedPrompts
    integers: Tensor  # int64 [parameters and the position, B]
    floats: Tensor
    columns: Tensor
    run: Step


class Prefills:
    """Runs prompts of one stage and draws a token after each, on tensors that stay where they are.

    Args:
        shapes: that are captured, the least first; none runs every batch as it is.
    """

    def __init__(
        self,
        stage: CausalStage,
        cache: KVPages,
        shapes: Sequence[PackedShape],
        graphs: GraphRunner,
    ) -> None:
        self._stage = stage
        self._cache = cache
        self._shapes = shapes
        self._graphs = graphs
        self._captured: dict[PackedShape, _Captured] = {}

    def run(self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]]) -> Tensor:
        """Enqueue the tasks' prompts; return the columns drawn, int64 [B], on the device.

        They are written over by the next batch.
        """
        chunks = [task.chunk(table) for task, table in zip(tasks, pages, strict=True)]
        n_tokens = sum(len(chunk.ids[0]) for chunk in chunks)
        shape = self._shape_for(n_tokens, len(chunks))
        if shape is None:
            return self._stage.prefill(tasks, pages, self._cache)
        captured = self._capture(shape, len(chunks[0].ids))
        packed = PackedPrompts.pack(chunks, self._cache.page_size, shape=shape)
        for target, values in zip(captured.prompts.tensors(), packed.tensors(), strict=True):
            fill(target, values)
        integers = [(*task.sampling.integers, len(task.tokens)) for task in tasks]
        floats = [task.sampling.floats for task in tasks]
        for target, rows in ((captured.integers, integers), (captured.floats, floats)):
            table = torch.zeros(target.shape, dtype=target.dtype, device="cpu")
            table[:, : len(rows)] = torch.tensor(rows, dtype=target.dtype, device="cpu").T
            fill(target, table)
        captured.run()
        return captured.columns[: len(tasks)]

    def warm_ups(self, n_streams: int) -> list[Callable[[], object]]:
        """Return a call for each shape that captures it, for prompts of `n_streams` streams."""
        return [partial(self._capture, shape, n_streams) for shape in self._shapes]

    def _shape_for(self, n_tokens: int, n_sequences: int) -> PackedShape | None:
        """Return the least shape that holds so many, if there is one."""
        return next(
            (s for s in self._shapes if n_tokens <= s.tokens and n_sequences < s.sequences), None
        )

    def _capture(self, shape: PackedShape, n_streams: int) -> _Captured:
        known = self._captured.get(shape)
        if known is not None:
            return known
        model, n = self._stage.model, shape.sequences
        device = model.device
        # Padding has to fit into the longest sequence too.
        prompts = PackedPrompts.nothing(
            n_streams, shape, device, longest=max(model.config.block_size, _STEP)
        )
        # Greedy rows, for as long as nothing is filled in.
        integers = torch.zeros(5, n, dtype=torch.int64, device=device)
        floats = torch.zeros(3, n, dtype=torch.float32, device=device)
        columns = torch.zeros(n, dtype=torch.int64, device=device)
        sampling: SamplingMetadata = metadata_of(list(integers[:4]), list(floats))

        def prefill() -> None:
            columns.copy_(self._stage.draw_after(prompts, sampling, integers[4], self._cache))

        captured = _Captured(prompts, integers, floats, columns, self._graphs.capture(prefill))
        self._captured[shape] = captured
        return captured
