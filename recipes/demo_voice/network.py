"""The transformers, as small as they can be written; tensors are named at export as Bark's are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Layers, width, positions, and how wide a head is."""

    layers: int
    width: int
    positions: int
    head_size: int = 64

    @property
    def heads(self) -> int:
        return self.width // self.head_size


class Block(nn.Module):
    """One layer: attention, then the perceptron, each after a norm and added to what came in."""

    def __init__(self, shape: Shape, *, causal: bool) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.causal = shape.heads, causal
        # Bark's fine model has biases in its norms, the causal ones have none.
        self.norm_1 = nn.LayerNorm(width, bias=not causal)
        self.norm_2 = nn.LayerNorm(width, bias=not causal)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States, and the queries and keys [B, heads, T, head_size]."""
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm_2(x)))), q, k


class Transformer(nn.Module):
    """States of embedded positions."""

    def __init__(self, shape: Shape, *, causal: bool) -> None:
        super().__init__()
        self.shape = shape
        self.positions = nn.Parameter(torch.zeros(shape.positions, shape.width))
        self.blocks = nn.ModuleList(Block(shape, causal=causal) for _ in range(shape.layers))
        self.final_norm = nn.LayerNorm(shape.width, bias=not causal)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            for last in (block.out, block.down):
                nn.init.normal_(last.weight, std=(2 * shape.layers * last.in_features) ** -0.5)

    def forward(
        self, x: Tensor, left_out: tuple[int, int] = (0, 0), watched: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, T, C] of x [B, T, C], which lacks the positions from `left_out[0]` to
        `left_out[1]` (the pads of a prompt, whose work training saves); and the queries and keys of
        layer `watched`."""
        start, end = left_out
        here = torch.cat([self.positions[:start], self.positions[end:]])[: x.shape[1]]
        x = x + here
        seen = (x, x)
        for i, block in enumerate(self.blocks):
            x, *both = block(x)
            if i == watched:
                seen = (both[0], both[1])
        return self.final_norm(x), *seen


class CausalModel(nn.Module):
    """The semantic or the coarse model: ids in, logits of the next id out.

    Args:
        n_out: the ids that it may predict are the first so many.
    """

    def __init__(self, shape: Shape, n_in: int, n_out: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_in, shape.width)
        self.body = Transformer(shape, causal=True)
        self.head = nn.Linear(shape.width, n_out, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.head.weight, std=0.02)

    def states(self, x: Tensor, prompt: int, whole_prompt: int) -> Tensor:
        """States after the prompt of embedded x [B, T, C], whose prompt has `prompt` positions of
        the `whole_prompt` that it has at last."""
        result: Tensor = self.body(x, (prompt, whole_prompt))[0][:, prompt:]
        return result


class FineModel(nn.Module):
    """All frames at once: the codes of one codebook from those before it.

    Codebook k's head is its embedding, as Bark's files have it.
    """

    def __init__(self, shape: Shape, n_codebooks: int, n_ids: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(n_codebooks, n_ids, shape.width) * 0.1)
        self.body = Transformer(shape, causal=False)

    def forward(self, codes: Tensor, codebook: int, n_codes: int) -> Tensor:
        """Logits [B, T, n_codes] of `codebook` for codes int64 [B, T, K]; those of codebooks 0 to
        `codebook` are read, as Bark does."""
        x = self.embeddings.new_zeros(())
        for k in range(codebook + 1):
            x = x + F.embedding(codes[..., k], self.embeddings[k])
        logits: Tensor = self.body(x)[0] @ self.embeddings[codebook, :n_codes].T
        return logits
