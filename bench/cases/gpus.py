"""GPUs by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """What a data sheet says of a GPU.

    Attributes:
        bytes_per_s: of its memory.
        flops_per_s: of dense products in half precision that add in float32.
        clock_hz: the boost clock that `flops_per_s` is stated for.
    """

    name: str
    capability: int
    bytes_per_s: float
    flops_per_s: float
    multiprocessors: int
    clock_hz: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", 90, 4.8e12, 989e12, 132, 1.83e9,
            "NVIDIA H200 data sheet (SXM); clock of the H100 architecture white paper"),
        GPU("H100", 90, 3.35e12, 989e12, 132, 1.83e9,
            "NVIDIA H100 data sheet (SXM) and architecture white paper"),
        GPU("L4", 89, 0.3e12, 121e12, 58, 2.04e9,
            "NVIDIA L4 data sheet (half of the figure with sparsity); 72 W may be too few"),
        GPU("RTX 4090", 89, 1.008e12, 165e12, 128, 2.52e9,
            "NVIDIA Ada architecture white paper (FP16 with FP32 accumulate, dense)"),
    )
}  # fmt: skip
