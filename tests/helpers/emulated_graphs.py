"""CUDA graphs of the emulated GPU, which repeat the device's work and no Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from helpers.emulated_gpu import EmulatedGPU, rubbish, share_memory


class Recording:
    """What a captured step lets the device do, to be done again on the same memory.

    Memory that the step allocates is the graph's: between two runs anything may be in it.
    """

    def __init__(self) -> None:
        self._launches: list[Callable[[], Any]] = []
        self._own: list[Tensor] = []

    def append(
        self, func: Callable[..., Any], args: Any, kwargs: Any, result: Any, *, mutates: bool
    ) -> None:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        new = [not any(share_memory(t, other) for other in given) for t in made]
        if made and not any(new) and not mutates:
            return  # a view
        self._own += [t for t, is_new in zip(made, new, strict=True) if is_new]

        def again() -> None:
            for old, value, is_new in zip(
                made, tree_leaves(func(*args, **kwargs)), new, strict=False
            ):
                if is_new:
                    old.copy_(value)

        self._launches.append(again)

    @property
    def n_launches(self) -> int:
        return len(self._launches)

    def replay(self) -> None:
        with torch._C.DisableTorchFunction():
            for tensor in self._own:
                tensor.fill_(rubbish(tensor.dtype))
            for again in self._launches:
                again()


class EmulatedGraphs:
    """Captures steps as a CUDA graph does: what is repeated is the device's work, not the step.

    A step that does more than let the device compute (asks it, copies from the host, makes tensors
    there) cannot be captured.
    """

    def __init__(self) -> None:
        self.captured: list[Recording] = []
        self.repeated = 0

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        gpu = EmulatedGPU.current
        step()
        recording = gpu.recording = Recording()
        try:
            step()
        finally:
            gpu.recording = None
        self.captured.append(recording)

        def repeat() -> None:
            self.repeated += 1
            recording.replay()

        return repeat
