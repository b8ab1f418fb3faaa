"""Measure the most memory that this process has had, and what of it are weights."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bark_fast import Bark
from bark_fast.kernels import PackedWeight


class PeakMemory:
    """Peak memory of a stretch of work.

    On CUDA it is what torch had allocated, on a CPU the resident set.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        """Forget earlier peaks, where the system can."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with suppress(OSError):  # then the peak is the whole process's
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is now

    def n_bytes(self) -> int:
        """Return the peak since `reset`."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bytes_of_weights(bark: Bark) -> int:
    """Count the bytes of all weights as they are served; what is packed twice counts once."""
    runner: Any = bark.engine.runner
    total = 0

    def count(weight: Any) -> Any:
        nonlocal total
        parts = [weight]
        if isinstance(weight, PackedWeight):
            parts = [weight.panels, weight.scales, weight.excess]
        total += sum(part.numel() * part.element_size() for part in parts if part is not None)
        return weight

    decoders = runner.semantic.stage, runner.coarse.stage
    for model in (*(stage.model for stage in decoders), runner.fine.model, runner.codec.model):
        model.map_weights(count)
    return total
