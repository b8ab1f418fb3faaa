"""The contract of every operation that Bark's networks are made of.

An operation's name stands for a mathematical result. A `Backend` computes it; `dispatch.backend`
picks one by name. What each operation takes and returns is written here and nowhere else.

Shapes use one vocabulary: B batch, T tokens, N packed tokens of several sequences, H heads, D head
size, C width, F frames, V vocabulary, K streams or codebooks, P pages.

`decode=True` says that the rows of a call are single steps of independent sequences. It picks the
schedule; the number of rows never does, so that in either mode a row's bits do not depend on what
else is in the batch. This is exact for "triton"; the libraries behind "torch" choose their schedule
by shape, so there it holds up to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from bark_fast.kernels.state import (
    DecodeState,
    Filter,
    PackedWeight,
    SamplingMetadata,
    TokenSpace,
)

Impl = Literal["torch", "cpu", "native", "int8", "triton"]
"""The name of a backend; `dispatch` describes each."""

Norm = tuple[Tensor, Tensor | None]
"""Weight and bias of a layer norm; the bias may be None."""

Weight = Tensor | PackedWeight
"""[O, K] of a product, as torch stores it or as `Backend.pack_weight` made it."""

LAYER_NORM_EPS = 1e-5


class CodecOps(ABC):
    """The operations of EnCodec's decoder on one sequence, T rows of C channels, float32."""

    def pack_weight(self, weight: Tensor) -> Weight:
        """Return the weight [4 C, C] in the form that `lstm` reads."""
        return weight

    def pack_filter(self, weight: Tensor, bias: Tensor, *, width: int) -> Filter:
        """Return the weight [O, n C] and the bias [O] of a convolution in the form that
        `convolution` reads; `width` is C."""
        return Filter(weight, bias, width)

    @abstractmethod
    def convolution(
        self,
        x: Tensor,
        filter: Filter,
        *,
        residual: Tensor | None = None,
        elu: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        """Multiply windows of n rows: y[t] = weight @ (x[t], ..., x[t + n - 1]) + bias.

        Args:
            x: [T + n - 1, C], contiguous: what lies before the first row comes along.
            filter: made by `pack_filter`.
            residual: [T, O], added to the product.
            elu: apply ELU with alpha 1 (Clevert et al. 2016) to the sum.
            out: [T, O], contiguous, where the result is written.
        """

    @abstractmethod
    def elu(self, x: Tensor, *, residual: Tensor | None = None, out: Tensor) -> Tensor:
        """Write ELU(x + residual), all [T, C] and contiguous."""

    @abstractmethod
    def lstm(self, gates: Tensor, weight: Weight) -> Tensor:
        """Run a layer of LSTM (Hochreiter and Schmidhuber 1997) from a state of zeros.

        Args:
            gates: [T, 4 C], what the input and both biases add to the input's, the forget, the
                cell's and the output gate, as torch orders them.
            weight: [4 C, C], of the state before.

        Returns:
            [T, C]
        """


class Backend(ABC):
    """One implementation of every operation.

    A backend holds no state besides its options: a model asks for one when it is built, and any
    number of models may share it.

    Attributes:
        codec: what computes the codec; None leaves it to the torch module.
    """

    codec: CodecOps | None = None

    @abstractmethod
    def embedding_sum(
        self, ids: Tensor, tables: Tensor, *, positions: Tensor, position_table: Tensor
    ) -> Tensor:
        """Sum K embeddings and a position embedding for each token.

        Args:
            ids: int64 [K, N]; -1 adds nothing (a stream that is silent at that token).
            tables: [K, V, C], one table for each stream; `table.expand(K, -1, -1)` shares one.
            positions: int64 [N], rows of `position_table` [P, C].

        Returns:
            [N, C]
        """

    @abstractmethod
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Normalise the last dimension of x [N, C] (Ba et al. 2016); statistics in float32.

        The variance is increased by `LAYER_NORM_EPS`, here and wherever an operation takes a
        `Norm`.
        """

    @abstractmethod
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
        """Compute x @ weight.T with what precedes and follows it in a transformer block.

        Args:
            x: [N, K].
            weight: [O, K], as torch stores it or as `pack_weight` made it.
            bias: [O].
            norm: weight and bias [K] of a layer norm that is applied to x first.
            gelu: apply the exact GELU (erf) to the product.
            residual: [N, O], added last.
            decode: see the module's docstring.
            workspace: the result of `decode_workspace`, to avoid allocating it at every step.

        Returns:
            [N, O]
        """

    @abstractmethod
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
        """Apply a layer norm and project to queries, keys and values; store the last two in pages.

        Args:
            x: [N, C].
            weight: [3 C, C], the rows of queries, keys and values.
            bias: [3 C].
            k_pages, v_pages: [P, H, page_size, D] of `kv_dtype`, contiguous, with H D = C; written
                in place.
            slot_mapping: int64 [N], page * page_size + offset of each token; -1 writes nothing.
            norm, decode: as in `fused_linear`.

        Returns:
            The queries, [N, H, D].
        """

    @abstractmethod
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
        """Attend causally from packed queries to the pages of each query's sequence.

        The queries of sequence b are its last ones: query i of n sees the first
        `seq_lens[b] - n + 1 + i` keys. Scores are scaled by 1/sqrt(D) (Vaswani et al. 2017, eq. 1);
        paging follows Kwon et al. 2023. A sequence without keys gives zeros.

        Args:
            q: [N, H, D], the queries of B sequences one after another.
            k_pages, v_pages: [P, H, page_size, D].
            block_tables: int64 [B, max_pages], the pages of each sequence in order.
            seq_lens: int64 [B], the number of keys, including those of the queries' tokens.
            max_queries, max_length: at least the most queries and keys of any sequence. Where
                lengths grow on the device, max_pages * page_size is a safe max_length.
            cu_seqlens_q: int64 [B + 1], offsets into q; None where every sequence has one query.
            decode: every sequence has one query, and `cu_seqlens_q` is not read.
            workspace: the result of `decode_workspace`, to avoid allocating it at every step.

        Returns:
            [N, H, D]
        """

    @abstractmethod
    def bidirectional_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from every frame to every frame; q, k, v and the result are [B, T, H, D].

        q, k and v may be slices of one projection whose last two dimensions are contiguous.
        """

    @abstractmethod
    def codebook_sum(self, codes: Tensor, tables: Tensor) -> Tensor:
        """Undo residual vector quantisation: sum the codebook vectors of each frame.

        Args:
            codes: int64 [B, K, F].
            tables: [K, V, C] (EnCodec, Défossez et al. 2022, section 3.2).

        Returns:
            [B, C, F], contiguous, which is the layout that the decoder's first convolution reads.
        """

    @abstractmethod
    def sample(
        self,
        logits: Tensor,
        metadata: SamplingMetadata,
        space: TokenSpace,
        *,
        positions: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor:
        """Choose one column a row: the argmax of processed logits plus Gumbel noise (Gumbel 1954).

        The noise is a function of (seed, stage, position, column) alone, so a row gets the same
        result in any batch, in any place, and up to rounding on any device.
        `reference.process_logits` says what temperature, top-k and top-p do, and
        `SamplingMetadata.suno_rules` what differs by the rules of suno's code.

        A row gets `NO_TOKEN` whatever its temperature if, of the columns that it may take, one is
        NaN or +infinity or all are -infinity: no distribution has such logits. With `state` the row
        ends with it in its history, so that no later step reads it.

        Args:
            logits: [B, V] of the ids that can be sampled; where the stage has an end token, it is
                the last column.
            metadata: the rows' parameters.
            space: the meaning of the columns.
            positions: int64 [B], 0 .. 2**32 - 1, each row's place in its sequence of generated
                tokens; not read with `state`, which counts them.
            state: advanced in place to the next step; the results of finished rows mean nothing.

        Returns:
            int64 [B], columns or `NO_TOKEN`.
        """

    @abstractmethod
    def random_words(self, seeds: Tensor, positions: Tensor, *, stage: int, n_ids: int) -> Tensor:
        """Return the 32-bit integers behind the noise of `sample`, int64 [B, n_ids].

        Column i has word i % 4 of the Philox-4x32-10 block (Salmon et al. 2011) with counter
        (i // 4, position, stage, 0) and the seed as its key. The noise is -log(-log(u)), where u in
        (0, 1) is the word's upper 23 bits, centred, and so exact in float32.
        """

    def pack_weight(self, weight: Tensor) -> Weight:
        """Return the weight [O, K] of a product in the form that this backend multiplies fastest.

        The result has the same shape; only `fused_linear` and `qkv_to_pages` can read it.
        """
        return weight

    def kv_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the pages of keys and values of a model in `dtype`."""
        return dtype

    def decode_workspace(self, batch: int, heads: int, *, device: torch.device) -> Tensor | None:
        """Return scratch memory for operations with `decode`, or None if they need none.

        Every launch leaves it as it was, so one serves a whole loop of steps on one stream, of at
        most `batch` sequences.
        """
        return None


def noise_positions(positions: Tensor | None, state: DecodeState | None) -> Tensor:
    """Return the positions that `Backend.sample` draws its noise at."""
    if state is not None:
        return state.num_generated
    if positions is None:
        raise ValueError("sample() needs positions where there is no state to count them")
    return positions
