"""Options of an engine, as users give them and with nothing left open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bark_fast.engine.scheduler import Phase, Policy
from bark_fast.errors import InputError
from bark_fast.types import Stage
from bark_fast.validation import check_integer, check_number

# Beyond it a decode step is expected to be bound by its products; a CPU's is much earlier.
MAX_BATCH = {"cuda": 256, "cpu": 16}


@dataclass(frozen=True)
class EngineOptions:
    """Options of how an engine shares the machine between utterances.

    None stands for the value that suits the device.

    Attributes:
        policy: "latency" moves every utterance on by turns; "throughput" waits for full batches;
            "auto" is "latency" while someone streams or awaits, else "throughput".
        max_batch_size: utterances that run together in a stage (16 on a CPU; on CUDA as many as
            the memory for keys and values holds at full length, 256 at most).
        max_prefill_tokens: of the prompts that one step runs; a longer prompt runs alone (8 192 on
            CUDA, 1 024 on a CPU).
        max_fine_windows: that one fine pass fills together (8 on CUDA; 1 on a CPU, where one is
            work enough for all cores).
        max_codec_frames: that are decoded together (8 192 on CUDA; one utterance on a CPU).
        kv_cache_gib: memory for keys and values, at least enough for one utterance. By default what
            `max_batch_size` utterances (256 if it is None on CUDA) can come to need, but at most
            70 % of the free memory of a GPU, or a quarter of a CPU's.
        page_size: positions a page of keys and values (64 on CUDA; on a CPU all of a sequence,
            which spares gathering them).
        threads: that compute on a CPU; by default as many as torch has in the thread that steps.
            With the native kernels neither tokens nor audio depend on it.
        steps_per_look: decode steps that are enqueued before the host looks at what was drawn; a
            coarse window needs no look.
        cuda_graphs: record decode steps, prompts and fine passes as CUDA graphs.
        dependent_launches: let the kernels of a decode step start before the one before them has
            ended, where the GPU can (sm_90 and newer).
    """

    policy: Literal["auto", "latency", "throughput"] = "auto"
    max_batch_size: int | None = None
    max_prefill_tokens: int | None = None
    max_fine_windows: int | None = None
    max_codec_frames: int | None = None
    kv_cache_gib: float | None = None
    page_size: int | None = None
    threads: int | None = None
    steps_per_look: int | None = None
    cuda_graphs: bool = True
    dependent_launches: bool = True

    def __post_init__(self) -> None:
        policies = ("auto", "latency", "throughput")
        if self.policy not in policies:
            raise InputError(f"policy must be one of {', '.join(policies)}, got {self.policy!r}")
        for name in (
            "max_batch_size",
            "max_prefill_tokens",
            "max_fine_windows",
            "max_codec_frames",
            "page_size",
            "threads",
            "steps_per_look",
        ):
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, "an integer >= 1", 1, 2**31 - 1)
        if self.kv_cache_gib is not None:
            check_number(
                "kv_cache_gib", self.kv_cache_gib, "a finite number above 0", 0, math.inf,
                low_open=True,
            )  # fmt: skip
        for name in ("cuda_graphs", "dependent_launches"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class EngineConfig:
    """`EngineOptions` with nothing left open.

    Attributes:
        limits: of the scheduler; `max_running` too.
        steps: decode steps between two looks at the host, for each causal stage.
        page_sizes: positions a page of keys and values, for each causal stage.
        depth: batches that may be under way while the next is prepared.
        policy: None is "auto".
        threads: None leaves them to torch.
    """

    limits: Mapping[Phase, int]
    max_running: int
    steps: Mapping[Stage, int]
    page_sizes: Mapping[Stage, int]
    depth: int = 0
    policy: Policy | None = None
    threads: int | None = None

    def reserved_steps(self, stage: Stage) -> int:
        """Return how many steps the pages of a row must hold: where steps are enqueued ahead, two
        blocks and the place of the token that comes next."""
        return 2 * self.steps[stage] + 1 if self.depth else self.steps[stage]
