"""Fine passes as CUDA graphs, one for each codebook and number of windows.

A pass of bark is 172 launches, 2.9 ms of the host's time, and 1.5 ms of the GPU's for a window
(0.62 TFLOP at 400 TFLOP/s): one window waits for the host, and of bark-small or with faster kernels
up to five. A padded window would cost as much as another, so every number of windows up to eight
has its graphs, and larger batches run in parts. The codebooks differ in what is summed and in the
head; a graph each is simpler than one for all, which would have to be given the head's weights.

The head and the last block's output and MLP run over all frames of a window, not for those alone
that are to be filled, which are others in every task: of 620 GFLOP up to 2 and 19 more (18 C^2 a
frame).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from bark_fast.engine.graphs import GraphRunner, Step
from bark_fast.models.transfer import fill
from bark_fast.stages.fine import FineStage, FineTask
from bark_fast.stages.sampling import metadata_of

_MAX_WINDOWS = 8


class FinePasses:
    """Runs fine passes on codes that stay where they are.

    Args:
        n_frames: of a window.
        max_windows: of a batch.
    """

    def __init__(
        self, stage: FineStage, *, n_frames: int, max_windows: int, graphs: GraphRunner
    ) -> None:
        self._stage = stage
        self._graphs = graphs
        self._n_windows = n = min(max_windows, _MAX_WINDOWS)
        self._steps: dict[tuple[int, int], Step] = {}
        config, device = stage.model.config, stage.model.device
        self._codebooks = range(config.n_codes_given, config.n_codes_total)
        self._codes = torch.zeros(
            n, n_frames, config.n_codes_total, dtype=torch.int64, device=device
        )
        self._frames = torch.arange(n_frames, dtype=torch.int64, device=device)
        # The parameters of each window, and the position of its first frame.
        self._integers = torch.zeros(5, n, dtype=torch.int64, device=device)
        self._floats = torch.zeros(3, n, dtype=torch.float32, device=device)
        self._drawn = torch.zeros(n, n_frames, dtype=torch.int64, device=device)

    @property
    def model(self) -> object:
        """The network."""
        return self._stage.model

    def run(self, tasks: Sequence[FineTask]) -> None:
        """Fill the next codebook, the same for all, of every task's window."""
        for i in range(0, len(tasks), self._n_windows):
            self._run(tasks[i : i + self._n_windows])

    def warm_ups(self) -> list[Callable[[], object]]:
        """Return a call for each graph that captures it."""
        return [
            partial(self._step, n, codebook)
            for n in range(1, self._n_windows + 1)
            for codebook in self._codebooks
        ]

    def _run(self, tasks: Sequence[FineTask]) -> None:
        n, codebook = len(tasks), tasks[0].codebook
        assert all(task.codebook == codebook for task in tasks), "one codebook a batch"
        step = self._step(n, codebook)
        integers = [(*task.sampling.integers, task.first_position) for task in tasks]
        floats = [task.sampling.floats for task in tasks]
        for target, rows in ((self._integers, integers), (self._floats, floats)):
            table = torch.zeros(target.shape, dtype=target.dtype, device="cpu")
            table[:, :n] = torch.tensor(rows, dtype=target.dtype, device="cpu").T
            fill(target, table)
        for row, task in zip(self._codes, tasks, strict=False):
            row.copy_(task.window_codes())
        step()
        for row, task in zip(self._drawn, tasks, strict=False):
            frames = task.frames_to_fill
            task.fill(row[frames.start : frames.stop])

    def _step(self, n: int, codebook: int) -> Step:
        """Return the pass over the first `n` windows."""
        known = self._steps.get((n, codebook))
        if known is not None:
            return known
        codes, drawn, n_frames = self._codes[:n], self._drawn[:n], len(self._frames)
        n_rows = n * n_frames

        def fine_pass() -> None:
            def every_frame(table: torch.Tensor) -> list[torch.Tensor]:
                return [row[:n, None].repeat(1, n_frames).view(n_rows) for row in table]

            *integers, first = every_frame(self._integers)
            column = self._stage.draw_all_frames(
                codes,
                codebook,
                metadata_of(integers, every_frame(self._floats)),
                (first.view(drawn.shape) + self._frames).view(n_rows),
            )
            drawn.copy_(column.view(drawn.shape))

        step = self._steps[n, codebook] = self._graphs.capture(fine_pass)
        return step
