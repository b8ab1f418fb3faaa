"""The weights of one block of GPT-2's kind, which all three transformers have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from bark_fast.kernels import Backend, Norm, PackedWeight, Weight

_OF_A_PRODUCT = re.compile(r"\.layers\.\d+\.(attn\.(att|out)|mlp\.(in|out))_proj\.weight$")


def is_of_a_product(name: str) -> bool:
    """Return True for the name of a block's weight, which can be packed as soon as it is read."""
    return _OF_A_PRODUCT.search(name) is not None


def is_packed(weight: Weight) -> bool:
    """Return True for what a backend's `pack_weight` has made of a tensor."""
    return isinstance(weight, PackedWeight) or weight.is_mkldnn


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
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str, *, ops: Backend) -> Block:
        """Return the block whose tensors have names that start with `prefix`, packed for `ops`."""

        def get(name: str) -> Tensor:
            return tensors[f"{prefix}.{name}"]

        def packed(name: str) -> Weight:
            weight: Weight = tensors[f"{prefix}.{name}"]
            # When it was read, perhaps: `is_of_a_product`.
            return weight if is_packed(weight) else ops.pack_weight(get(name))

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
        """Return the same block with `change(weight)` in the place of every weight."""

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(changed(part) for part in value)
            return None if value is None else change(value)

        return Block(**{f.name: changed(getattr(self, f.name)) for f in fields(self)})

    def output_and_mlp(self, ops: Backend, x: Tensor, attended: Tensor, **how: Any) -> Tensor:
        """Run what follows attention: output projection and MLP, each with its residual.

        Args:
            how: `decode` and `workspace` of `Backend.fused_linear`.
        """
        attended = attended.reshape(x.shape)
        x = ops.fused_linear(attended, self.out, self.out_bias, residual=x, **how)
        hidden = ops.fused_linear(x, self.fc_1, self.fc_1_bias, norm=self.norm_2, gelu=True, **how)
        return ops.fused_linear(hidden, self.fc_2, self.fc_2_bias, residual=x, **how)
