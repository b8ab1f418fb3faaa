"""The kernels of GPUs, in Triton."""

from __future__ import annotations

from bark_fast.kernels.triton.backend import TritonBackend

__all__ = ["TritonBackend"]
