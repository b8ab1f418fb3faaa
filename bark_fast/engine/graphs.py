"""Work captured once and repeated: CUDA graphs, one for each of some sizes.

A decode step of Bark is some hundred launches of a few microseconds each, more than the host can
issue in that time; as a graph it is one. A graph freezes its launches and the addresses that they
read, so it serves one size, on tensors that stay where they are (`decoder`, `prefills`,
`fine_passes`). The native CPU kernels have the same in small, for decode steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from bark_fast import kernels

Step = Callable[[], None]


class GraphRunner(Protocol):
    """Makes a step that can be repeated out of one that can be run."""

    def capture(self, step: Step) -> Step:
        """Return a step that repeats `step` on the same tensors.

        `step` may be run meanwhile, any number of times or never.
        """
        ...


class CudaGraphRunner:
    """Repeats a step as a CUDA graph.

    All graphs share one memory pool, so they run one at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: memory of the pool may be used again without waiting only on its stream.
        self._stream = torch.cuda.Stream(device)

    def capture(self, step: Step) -> Step:
        # Once without capturing: kernels compile and libraries set themselves up at the first run,
        # neither of which a graph can hold. On a stream of its own, as capturing does.
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads do meanwhile is not ours to forbid.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            step()
        return graph.replay


class NativeProgramRunner:
    """Repeats a step of the native CPU kernels as one call, which spares Python's share of it."""

    def capture(self, step: Step) -> Step:
        return kernels.record_native(step)


class EagerRunner:
    """Runs the step itself each time."""

    def capture(self, step: Step) -> Step:
        return step


def capture_sizes(max_batch: int) -> list[int]:
    """Return the batch sizes to capture: close together where each row counts, wider apart above.

    An empty row costs its share of a product's tile, so up to 16, one tile of the decode kernels,
    powers of two are enough; above, multiples of 16.
    """
    sizes = [n for n in (1, 2, 4, 8) if n < max_batch]
    sizes += range(16, max_batch, 16)
    return [*sizes, max_batch]


def padded_size(sizes: Sequence[int], n_rows: int) -> int:
    """Return the least of `sizes` that holds `n_rows`."""
    return next(size for size in sizes if size >= n_rows)
