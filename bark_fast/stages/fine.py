"""Stage 3: coarse codes in, all codebooks out.

Windows of 1 024 frames, a hop of 512; in each, one pass a codebook fills the frames from
`first_frame` on. Frames and codebooks that are not known hold the padding code.
(transformers: BarkFineModel.generate.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bark_fast.checkpoint.config import Config
from bark_fast.kernels import SamplingMetadata, TokenSpace
from bark_fast.models.fine_gpt import FineGPT
from bark_fast.models.transfer import to_device
from bark_fast.stages.sampling import SamplingParams, batch_sampling
from bark_fast.types import STAGES, IntArray, Voice

Codes = TypeVar("Codes", Tensor, IntArray)
_SPACE = TokenSpace(stage=STAGES.index("fine"))


@dataclass(frozen=True)
class Window:
    """Frames [start, start + max_fine_input_length); those from first_frame (relative) on are
    filled."""

    start: int
    first_frame: int


def plan_windows(n_frames: int, n_history: int, config: Config) -> list[Window]:
    """Return the windows over `n_history` frames of the voice and `n_frames` new ones.

    There is at least one; shorter input is padded to it.
    """
    length = config.fine_rules.max_fine_input_length
    hop = config.fine_rules.max_fine_history_length
    total = max(n_history + n_frames, length)
    count = max(0, math.ceil((n_frames - (length - n_history)) / hop)) + 1
    windows = []
    for i in range(count):
        start = min(i * hop, total - length)
        fill = min(n_history + i * hop, total - hop)
        windows.append(Window(start, fill - start))
    return windows


def build_codes(coarse: IntArray, voice: Voice | None, config: Config) -> tuple[Tensor, int]:
    """Return codes int64 [T, n_fine] and how many of its frames are history.

    They hold the voice's last frames, the coarse codes with the other codebooks still unknown, and
    padding up to one window.
    """
    rules, padding = config.fine_rules, config.codebook_size
    history = (
        torch.empty(0, rules.n_fine_codebooks, dtype=torch.int64, device="cpu")
        if voice is None
        else torch.from_numpy(voice.fine_prompt[:, -rules.max_fine_history_length :].T)
    )
    n_history, n_frames = len(history), coarse.shape[1]
    total = max(n_history + n_frames, rules.max_fine_input_length)
    shape = total, rules.n_fine_codebooks
    codes = torch.full(shape, padding, dtype=torch.int64, device="cpu")
    codes[:n_history] = history
    codes[n_history : n_history + n_frames, : len(coarse)] = torch.from_numpy(coarse).T
    return codes, n_history


class FineTask:
    """One utterance in this stage, with the window and codebook that come next.

    Attributes:
        codes: int64 [T, n_fine] on the model's device.
    """

    def __init__(
        self,
        coarse: IntArray,
        voice: Voice | None,
        sampling: SamplingParams,
        config: Config,
        device: torch.device,
    ) -> None:
        self.sampling = sampling
        self.n_frames = coarse.shape[1]
        codes, self.n_history = build_codes(coarse, voice, config)
        # They stay there until the last pass: no pass waits for the host.
        self.codes = to_device(codes, device=device)
        self.windows = plan_windows(self.n_frames, self.n_history, config)
        self.window_index = 0
        self._n_coarse, self._n_fine = len(coarse), config.fine_rules.n_fine_codebooks
        self._length = config.fine_rules.max_fine_input_length
        self.codebook = self._n_coarse

    @property
    def finished(self) -> bool:
        return self.window_index == len(self.windows)

    @property
    def passes_done(self) -> int:
        return self.window_index * (self._n_fine - self._n_coarse) + self.codebook - self._n_coarse

    @property
    def passes(self) -> int:
        return len(self.windows) * (self._n_fine - self._n_coarse)

    @property
    def window(self) -> Window:
        return self.windows[self.window_index]

    def window_codes(self) -> Tensor:
        """Return the window's codes, a view int64 [max_fine_input_length, n_fine]."""
        return self.codes[self.window.start : self.window.start + self._length]

    @property
    def first_position(self) -> int:
        """The number of this draw of the window's first frame; that of the others follow. No other
        draw of this request has one of them."""
        return (self.window_index * self._n_fine + self.codebook) * self._length

    @property
    def frames_to_fill(self) -> range:
        """The frames of the window that this pass fills. The last one leaves the padding behind the
        speech, because nothing will read it."""
        stop = self._length
        if self.codebook == self._n_fine - 1:
            stop = min(stop, self.n_history + self.n_frames - self.window.start)
        return range(self.window.first_frame, stop)

    def sample_positions(self) -> Tensor:
        """Return the number of the draw of each of `frames_to_fill`."""
        first, frames = self.first_position, self.frames_to_fill
        ends = first + frames.start, first + frames.stop
        return torch.arange(*ends, dtype=torch.int64, device="cpu")

    def fill(self, column: Tensor) -> None:
        """Take this pass's codes, of `frames_to_fill`, and go on to the next pass.

        One may be NO_TOKEN: the next passes leave it out of their sums.
        """
        frames = self.frames_to_fill
        self.window_codes()[frames.start : frames.stop, self.codebook] = column
        self.codebook += 1
        if self.codebook == self._n_fine:
            self.codebook = self._n_coarse
            self.window_index += 1

    def new_frames(self, codes: Codes) -> Codes:
        """Return the part [n_fine, F] of this task's `codes`, on whatever device, that is new."""
        new: Codes = codes[self.n_history : self.n_history + self.n_frames].T
        return new


class FineStage:
    """Runs one pass of any number of tasks."""

    def __init__(self, model: FineGPT) -> None:
        self.model = model

    def run(self, tasks: Sequence[FineTask]) -> None:
        """Fill the next codebook, the same for all, of every task's window."""
        codebook = tasks[0].codebook
        assert all(task.codebook == codebook for task in tasks), "one codebook a batch"
        device = self.model.device
        frames = [task.frames_to_fill for task in tasks]
        length = len(tasks[0].window_codes())
        # Each task's frames among those of all windows, one after another.
        wanted = [i * length + t for i, filled in enumerate(frames) for t in filled]
        states = self.model.forward(
            torch.stack([task.window_codes() for task in tasks]),
            codebook,
            wanted=to_device(wanted, device=device),
        )
        positions = [task.sample_positions() for task in tasks]
        counts = [len(filled) for filled in frames]
        codes = self.model.ops.sample(
            self.model.logits(states, codebook),
            batch_sampling([task.sampling for task in tasks], device, repeats=counts),
            _SPACE,
            positions=to_device(torch.cat(positions), device=device),
        )
        for task, column in zip(tasks, codes.split(counts), strict=True):
            task.fill(column)

    def warm_ups(self) -> Sequence[Callable[[], object]]:
        """Return nothing: passes are run as they are."""
        return ()

    def draw_all_frames(
        self, codes: Tensor, codebook: int, sampling: SamplingMetadata, positions: Tensor
    ) -> Tensor:
        """Draw `codebook` of every frame of windows int64 [B, T, n_fine], on the device alone.

        Args:
            sampling: of each of the B T frames; `positions`, int64 [B T], their draws' numbers.

        Returns:
            int64 [B T].
        """
        states = self.model.forward(codes, codebook)
        logits = self.model.logits(states, codebook)
        return self.model.ops.sample(logits, sampling, _SPACE, positions=positions)
