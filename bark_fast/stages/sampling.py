"""Sampling parameters of one request in one stage, and of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast.kernels import SamplingMetadata
from bark_fast.models.transfer import to_device

LEAST_TEMPERATURE = 1e-5  # long before, logits overflow; the limit is greedy
NEVER_AT_ONCE = 2.0  # a min_eos_p that no probability reaches
_MAX_TOP_K = 2**31  # beyond every vocabulary any k keeps all of it; an int64 holds this one


@dataclass(frozen=True)
class SamplingParams:
    """The sampling of one request in one stage, with nothing left open.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the fewest most likely tokens whose probabilities reach p; 1 keeps all.
        seed: 0 to 2**64 - 1.
        min_eos_p: the stage ends as soon as the end token's probability exceeds this; 0 never does.
        min_new_tokens: the end token is impossible before so many tokens.
        suno_rules: top-p, then top-k, then temperature; `min_eos_p` is compared with the end
            token's probability after them, equal is enough and 0 always ends (`NEVER_AT_ONCE`
            never does); no id past the last codebook.
    """

    temperature: float
    seed: int
    top_k: int = 0
    top_p: float = 1.0
    min_eos_p: float = 0.0
    min_new_tokens: int = 0
    suno_rules: bool = False

    @property
    def signed_seed(self) -> int:
        """The int64 with the 64 bits of the seed."""
        return self.seed - 2**64 if self.seed >= 2**63 else self.seed

    @property
    def integers(self) -> tuple[int, int, int, int]:
        """top_k, seed, min_new_tokens and suno_rules as `SamplingMetadata` holds them, int64."""
        top_k = min(self.top_k, _MAX_TOP_K)
        return top_k, self.signed_seed, self.min_new_tokens, int(self.suno_rules)

    @property
    def floats(self) -> tuple[float, float, float]:
        """temperature, top_p and min_eos_p as the float32 values that `SamplingMetadata` holds."""
        return self.temperature, self.top_p, self.min_eos_p


def metadata_of(integers: Sequence[Tensor], floats: Sequence[Tensor]) -> SamplingMetadata:
    """Return a batch whose parameters are in the order of `SamplingParams.integers` and
    `.floats`."""
    top_k, seeds, min_new_tokens, suno_rules = integers
    temperature, top_p, min_eos_p = floats
    return SamplingMetadata(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seeds=seeds,
        min_eos_p=min_eos_p,
        min_new_tokens=min_new_tokens,
        suno_rules=suno_rules,
    )


def batch_sampling(
    params: Sequence[SamplingParams],
    device: torch.device,
    *,
    repeats: Sequence[int] | None = None,
) -> SamplingMetadata:
    """Return the parameters of a batch as tensors on `device`.

    Args:
        repeats: how many rows each of `params` gets; one each if None.
    """
    integers = torch.tensor([p.integers for p in params], dtype=torch.int64, device="cpu")
    floats = torch.tensor([p.floats for p in params], dtype=torch.float32, device="cpu")
    if repeats is not None:
        counts = torch.tensor(repeats, dtype=torch.int64, device="cpu")
        each = torch.arange(len(params), dtype=torch.int64, device="cpu")
        rows = each.repeat_interleave(counts)
        integers, floats = integers[rows], floats[rows]

    def columns(table: Tensor) -> Sequence[Tensor]:
        # Each column at a multiple of 16 bytes: Triton compiles anew for what is not.
        n, width = table.shape
        padded = table.new_zeros(width, -(-n // 4) * 4)
        padded[:, :n] = table.T
        return [column[:n] for column in to_device(padded, device=device)]

    return metadata_of(columns(integers), columns(floats))
