"""The transformers, as small as they can be written; tensors are named at export as Bark's are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Layers, width (heads are 64 wide) and positions."""

    layers: int
    width: int
    positions: int

    @property
    def heads(self) -> int:
        return self.width // 64


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

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return result


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

    def forward(self, x: Tensor, left_out: tuple[int, int] = (0, 0)) -> Tensor:
        """States [B, T, C] of x [B, T, C], which lacks the positions from `left_out[0]` to
        `left_out[1]` (the pads of a prompt, whose work training saves)."""
        start, end = left_out
        here = torch.cat([self.positions[:start], self.positions[end:]])[: x.shape[1]]
        x = x + here
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.final_norm(x)
        return result


def clock(times: Tensor, width: int, *, slowest_s: float = 20.0, fastest_s: float = 0.06) -> Tensor:
    """Sines and cosines [T, width] of times in seconds.

    Positions of the same time in two streams start with the same vector, so attention finds what
    belongs together from the first step on; from there they are learned like any weight.
    """
    periods = torch.logspace(0, 1, width // 2, base=slowest_s / fastest_s) * fastest_s
    angle = 2 * torch.pi * times[:, None] / periods
    return torch.cat([angle.sin(), angle.cos()], 1) * 0.3


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
        result: Tensor = self.body(x, (prompt, whole_prompt))[:, prompt:]
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
        logits: Tensor = self.body(x) @ self.embeddings[codebook, :n_codes].T
        return logits
