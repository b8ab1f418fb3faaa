"""Predict how long recorded operations take on a GPU: a roofline for each, and what it cannot hide.

An operation takes, for each of its launches, the gap before it and the waits that follow one
another inside it; and once the longest of

    bytes / bandwidth, bytes from L2 / L2's bandwidth, FLOPs / (peak x share), instructions / issue.

It is a model: what it leaves out (caches that keep weights, memory that is not asked for in time,
power) makes it wrong by some tens of per cent, either way. It is for comparing alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from math import ceil, prod

from bark_fast.kernels.aot import PDL_TARGET, Launch
from bench.cases.gpus import GPU
from bench.cases.recording import Operation

SCHEDULERS = 4  # of a multiprocessor: each issues an instruction of one warp a cycle
ROWS_AT_ONCE = 8  # rows of x that a decode product without BLOCK_M takes at a time
SIZE = 2  # bytes of a number


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet says. Units are in the names."""

    bandwidth_share: float = 0.9  # 4.3 of an H200's 4.8 TB/s were measured with copies
    # A multiprocessor; 8.7 TB/s on an H100. Products at 700 TFLOP/s without multicast need 8.
    l2_bytes_per_cycle: float = 36.0
    gap_us: float = 1.3  # between two launches of a graph
    dependent_gap_us: float = 0.6  # the same with programmatic dependent launch
    memory_us: float = 0.7  # one trip to memory and back
    l2_us: float = 0.3  # one trip to L2 and back
    cycles_per_instruction: float = 4.0  # of a warp that is alone, each waiting for the last
    tile_share: float = 0.5  # of peak FLOPs, in tiles
    persistent_share: float = 0.62  # persistent tiles that come by descriptors
    flash_share: float = 0.35
    few_rows_share: float = 0.3  # decode products: mma.sync with 8 or 16 rows
    host_launch_us: float = 17.0  # of Python for a launch outside of a graph
    look_us: float = 300.0  # the host's look at what was drawn
    codec_share: float = 0.03  # of that peak, in float32 convolutions

    def lines(self) -> list[str]:
        """Return the assumptions, three a line."""
        each = [f"{f.name.replace('_', ' ')} {getattr(self, f.name):g}" for f in fields(self)]
        return ["  " + ", ".join(each[i : i + 3]) for i in range(0, len(each), 3)]


@dataclass(frozen=True)
class Code:
    """Figures of a compiled launch: all instructions, and those of them in loops."""

    instructions: int = 0
    looped: int = 0

    def executed(self, rounds: int) -> int:
        """Return the instructions of a thread that goes round every loop so many times."""
        return self.instructions + (rounds - 1) * self.looped


Compile = Callable[[Launch], Code]
"""Compiles a launch, or makes its figures up."""


def no_code(launch: Launch) -> Code:
    """Leave instructions out of the prediction."""
    return Code()


def read_ptx(ptx: str) -> Code:
    """Count the instructions of PTX; what lies between a label and a later jump to it is a loop."""
    total, labels = 0, {}
    looped: set[int] = set()
    for line in ptx.splitlines():
        label = re.match(r"\s*(\$\w+):", line)
        if label:
            labels[label[1]] = total
        elif re.match(r"\s+(?:@!?%?\w+ )?[a-z][\w.]*(?:[ \t].*)?;", line):
            jump = re.search(r"\bbra\S*\s+(\$\w+)", line)
            if jump and jump[1] in labels:
                looped.update(range(labels[jump[1]], total + 1))
            total += 1
    return Code(total, len(looped))


@dataclass(frozen=True)
class TimeModel:
    """Predicts times on one GPU.

    Attributes:
        compile: gives the code of a launch.
    """

    gpu: GPU
    compile: Compile = no_code
    assumed: Assumptions = Assumptions()

    def total_us(self, operations: Iterable[Operation]) -> float:
        """Return the microseconds of operations that follow one another in a graph."""
        return sum(self.operation_us(op) * op.count for op in operations)

    def launched_us(self, operations: Sequence[Operation]) -> float:
        """Return the same where Python launches them one by one, ahead of the GPU if it can."""
        host_us = self.assumed.host_launch_us * count_launches(operations)
        return max(self.total_us(operations), host_us)

    def operation_us(self, op: Operation) -> float:
        """Return the microseconds of one operation, the gap before it included."""
        overhead = sum(self.gap_us(launch) for launch in op.launches)
        return overhead + self.waits_us(op) + max(self.parts_us(op).values())

    def gap_us(self, launch: Launch) -> float:
        """Return the time between the end of the launch before and the start of this one."""
        early = self._starts_early(launch)
        return self.assumed.dependent_gap_us if early else self.assumed.gap_us

    def _starts_early(self, launch: Launch) -> bool:
        """Return whether the launch is a programmatic dependent, and the GPU knows that."""
        return self.gpu.capability >= PDL_TARGET and bool(launch.options.get("launch_pdl"))

    def waits_us(self, op: Operation) -> float:
        """Return the trips to memory and to L2 that must follow one another."""
        memory = l2 = 0
        for launch in op.launches:
            trips = rounds_of_memory(op, launch)
            if self._starts_early(launch) and op.name.startswith("product"):
                trips -= 1  # weights are on their way before the kernel before has ended
            memory += trips
            l2 += 1  # what the epilogue reads: residuals, slots
        if op.name == "attention" and op.decode:
            l2 += 2  # the sequence's length, then its page
            if splits_of(op, op.launches[-1]) > 1:
                l2 += 3  # the parts out, the counter, the parts back in
        return memory * self.assumed.memory_us + l2 * self.assumed.l2_us

    def parts_us(self, op: Operation) -> dict[str, float]:
        """Return what the operation takes of each resource; the longest is what it takes."""
        gpu, assumed = self.gpu, self.assumed
        from_l2 = sum(l2_bytes(op, launch) for launch in op.launches)
        l2_bytes_per_s = assumed.l2_bytes_per_cycle * gpu.multiprocessors * gpu.clock_hz
        rate = gpu.flops_per_s * self.flops_share(op)
        return {
            "memory": 1e6 * op.n_bytes / (gpu.bytes_per_s * assumed.bandwidth_share),
            "l2": 1e6 * from_l2 / l2_bytes_per_s,
            "flops": 1e6 * op.flops / rate,
            "issue": sum(self.issue_us(op, launch) for launch in op.launches) if op.decode else 0,
        }

    def flops_share(self, op: Operation) -> float:
        """Return the share of peak that the tensor cores reach, idle multiprocessors counted."""
        assumed, launch = self.assumed, op.launches[-1]
        n_tiles = tiles(op, launch)
        filled = n_tiles / (ceil(n_tiles / self.gpu.multiprocessors) * self.gpu.multiprocessors)
        if op.decode:
            return assumed.few_rows_share
        if op.name == "attention":
            return assumed.flash_share
        if "persistent" in launch.name:
            return assumed.persistent_share * filled
        return assumed.tile_share * filled

    def issue_us(self, op: Operation, launch: Launch) -> float:
        """Return the time that a multiprocessor takes to issue its programs' instructions."""
        each = ceil(programs(op, launch) / self.gpu.multiprocessors)
        warps = each * launch.options.get("num_warps", 4)
        executed = self.compile(launch).executed(rounds_of_code(op, launch))
        cycles = max(warps / SCHEDULERS, self.assumed.cycles_per_instruction)
        return 1e6 * executed * cycles / self.gpu.clock_hz


# What a launch does, by its constants ------------------------------------------------------------


def count_launches(operations: Iterable[Operation]) -> int:
    """Return the launches of all operations."""
    return sum(len(op.launches) * op.count for op in operations)


def all_programs(launch: Launch) -> int:
    """Return the programs of a launch."""
    return prod(launch.grid)


def programs(op: Operation, launch: Launch) -> int:
    """Return the programs of a launch that do something."""
    if op.name == "attention" and op.decode:
        return op.rows * launch.constants["HEADS"] * splits_of(op, launch)
    return all_programs(launch)


def splits_of(op: Operation, launch: Launch) -> int:
    """Return the programs that share the keys of one query."""
    return ceil(op.keys / launch.constants["SPLIT"])


def tiles(op: Operation, launch: Launch) -> int:
    """Return the tiles of a product's result, or the programs of anything else."""
    of = launch.constants
    if "BLOCK_N" not in of:
        return all_programs(launch)
    return ceil(of["N"] / of["BLOCK_N"]) * ceil(op.rows / of.get("BLOCK_M", op.rows))


def l2_bytes(op: Operation, launch: Launch) -> float:
    """Return the bytes that a product's programs read, each for itself."""
    of = launch.constants
    if "BLOCK_N" not in of:
        return 0
    rows = min(op.rows, of.get("BLOCK_M", op.rows))
    return tiles(op, launch) * (of["BLOCK_N"] + rows) * of["K"] * SIZE


def rounds_of_memory(op: Operation, launch: Launch) -> int:
    """Return how often a program waits for memory before it can ask for more."""
    of = launch.constants
    if not op.decode or "BLOCK_N" not in of:
        return 1  # later rounds are requested in time
    # Where K is split among programs, each has one round.
    return ceil(tiles(op, launch) * ceil(of["K"] / of["BLOCK_K"]) / all_programs(launch))


def rounds_of_code(op: Operation, launch: Launch) -> int:
    """Return how often a program goes round its loop."""
    of = launch.constants
    if op.name == "attention" and op.decode:
        return ceil(min(op.keys, of["SPLIT"]) / of["BLOCK_KV"])
    if op.decode and "BLOCK_N" in of:
        if "BLOCK_M" in of:  # over K; the first round is before the loop
            return max(1, rounds_of_memory(op, launch) - 1)
        return ceil(op.rows / ROWS_AT_ONCE)
    return 1  # the sampler's loops are for top-k and top-p
