"""Figures of other programs that were measured elsewhere, with their conditions.

They cannot be repeated by a command here: bark.cpp is built by hand. What is said of ours beside
them was measured on a machine of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeerFigure:
    """Seconds for one request of bark-small: 100 semantic tokens, 2.0 s of audio, from weights in
    memory.

    Attributes:
        precision: of the weights, as the program names it.
    """

    program: str
    precision: str
    seconds: float


MACHINE = "2 cores of an AMD EPYC (Zen 5), 2 threads"

FIGURES = (
    PeerFigure("bark.cpp, the ggml it comes with", "f32", 31.0),
    PeerFigure("bark.cpp, the ggml it comes with", "f16", 23.0),
    PeerFigure("bark.cpp, the ggml it comes with", "q8_0", 21.0),
    PeerFigure("bark.cpp, ported to the newest ggml", "f32", 16.0),
    PeerFigure("bark.cpp, ported to the newest ggml", "f16", 13.5),
    PeerFigure("bark.cpp, ported to the newest ggml", "q8_0", 14.2),
    PeerFigure("bark-fast", "float32", 7.09),
    PeerFigure("bark-fast", "bfloat16", 3.49),
    PeerFigure("bark-fast", "int8", 2.16),
)
