"""Memory that knows its bounds, what was never written, and which accesses are a race.

Two accesses to one address by different threads, at least one of them a write, race unless
something orders them: a barrier of the CTA, a barrier of the warp that both are in, or between CTAs
a release and an acquire (`atom.acq_rel`) with a barrier before the one and behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx.values import UNSIGNED

if TYPE_CHECKING:
    from helpers.ptx.tma import TensorMap

GRANULE = 2  # bytes that are watched together: the smallest value that the kernels store
WARP = 32


class PtxError(Exception):
    """Says what a kernel does that it must not, and where."""


class Clock:
    """Knows what is ordered before the instruction that runs now.

    Threads are numbered through all CTAs of a launch, and every instruction has its own time. CTAs
    run one after another here, which orders nothing: each begins with `forget`.

    Attributes:
        now: the instruction's time.
        since: int64 [threads]; what a thread did before this time is ordered before now.
        warp_since: int64 [warps]; likewise for what a warp's threads did, seen from inside it.
        releases: what was told at each counter in global memory, by its address.
    """

    def __init__(self, threads: int) -> None:
        self.now = 0
        self.since = np.zeros(threads, np.int64)
        self.warp_since = np.zeros(threads // WARP, np.int64)
        self.releases: dict[int, np.ndarray] = {}

    def forget(self) -> None:
        self.since[:] = self.warp_since[:] = 0

    def ordered(
        self, time: np.ndarray, low: np.ndarray, high: np.ndarray, thread: np.ndarray
    ) -> np.ndarray:
        """Return which accesses at `time`, by threads low .. high, precede those of `thread`."""
        before = time < np.minimum(self.since[low], self.since[high])
        warp = thread // WARP
        in_warp = (low // WARP == warp) & (high // WARP == warp) & (time < self.warp_since[warp])
        return before | in_warp | ((low == thread) & (high == thread))


class AccessLog:
    """Remembers for each granule its last access and the threads since the last barrier.

    Args:
        private: only one CTA uses this memory.
    """

    def __init__(self, granules: int, *, private: bool) -> None:
        self.private = private
        self.time = np.full(granules, -1, np.int64)
        self.low = np.zeros(granules, np.int32)
        self.high = np.zeros(granules, np.int32)

    def races(self, at: np.ndarray, thread: np.ndarray, clock: Clock) -> np.ndarray:
        """Return which of the remembered accesses to the granules `at` race with the threads'."""
        time = self.time[at]
        recent = time >= (clock.since[thread[0]] if self.private else 0)
        if not recent.any():
            return recent
        return recent & ~clock.ordered(time, self.low[at], self.high[at], thread)

    def record(self, at: np.ndarray, thread: np.ndarray, clock: Clock) -> None:
        """Remember accesses now; `thread` ascends, so that of equal places the last is highest."""
        low = high = thread
        time = self.time[at]
        if not (self.private and time.max() < clock.since[thread[0]]):
            low, high = self.low[at], self.high[at]
            over = clock.ordered(time, low, high, thread)
            low = np.where(over, thread, np.minimum(low, thread))
            high = np.where(over, thread, np.maximum(high, thread))
        self.low[at[::-1]] = low[::-1]
        self.high[at] = high
        self.time[at] = clock.now


class Memory:
    """A piece of memory: a tensor, or the shared memory of a CTA.

    Args:
        data: uint8 [size], which is read and written in place.
        unwritten: bool [size / GRANULE], True where there is nothing to be read yet.
        clock: finds races; None trusts the kernel.
        dependent: the kernel before this one may still be writing it.
        private: only one CTA uses it.
    """

    def __init__(
        self, name: str, data: np.ndarray, *, writable: bool, unwritten: np.ndarray | None = None,
        clock: Clock | None = None, dependent: bool = False, private: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.data, self.writable, self.dependent = name, data, writable, dependent
        self.unwritten = unwritten
        self.clock = clock if writable else None
        granules = -(-len(data) // GRANULE)
        if self.clock is not None:
            self._reads = AccessLog(granules, private=private)
            self._writes = AccessLog(granules, private=private)
        self._views = {
            size: data[: len(data) // size * size].view(dtype) for size, dtype in UNSIGNED.items()
        }

    def load(self, offsets: np.ndarray, size: int, count: int, threads: np.ndarray) -> np.ndarray:
        """Return `count` unsigned integers of `size` bytes at each of the threads' offsets."""
        granules = self._granules(offsets, size * count)
        if self.unwritten is not None:
            self._require(~self.unwritten[granules], offsets, threads, "was never written")
        if self.clock is not None:
            thread = np.repeat(threads, granules.shape[1])
            at = granules.ravel()
            races = self._writes.races(at, thread, self.clock)
            self._require(~races, offsets, threads, "is read while another thread writes it")
            self._reads.record(at, thread, self.clock)
        return self._views[size][(offsets // size)[:, None] + np.arange(count)]

    def store(self, offsets: np.ndarray, values: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Store values [threads, count] of unsigned integers; return the granules."""
        size = values.dtype.itemsize
        if not self.writable:
            raise PtxError(f"a store to {self.name}, which is no output")
        granules = self._granules(offsets, size * values.shape[1])
        if self.clock is not None:
            thread = np.repeat(threads, granules.shape[1])
            at = granules.ravel()
            races = self._writes.races(at, thread, self.clock)
            races |= self._reads.races(at, thread, self.clock)
            self._require(~races, offsets, threads, "is written while another thread accesses it")
            self._writes.record(at, thread, self.clock)
        if self.unwritten is not None:
            self.unwritten[granules] = False
        places = (offsets // size)[:, None] + np.arange(values.shape[1])
        self._views[size][places] = values
        same = self._views[size][places] == values
        self._require(same, offsets, threads, "gets two values from one instruction")
        return granules

    def add(self, offset: np.ndarray, amount: np.generic) -> np.generic:
        """Add to the one integer at offset [1], which an atomic may; return what it was."""
        self._granules(offset, amount.itemsize)
        if not self.writable:
            raise PtxError(f"an atomic on {self.name}, which is no output")
        view, place = self._views[amount.itemsize], int(offset[0]) // amount.itemsize
        before = view[place]
        view[place] = before + amount
        return before

    def _granules(self, offsets: np.ndarray, size: int) -> np.ndarray:
        """Return the granules of `size` bytes at each offset, [n, size / GRANULE]."""
        if offsets.min() < 0 or offsets.max() + size > len(self.data):
            worst = offsets.min() if offsets.min() < 0 else offsets.max()
            raise PtxError(f"{size} bytes at {worst} of {self.name}, which has {len(self.data)}")
        if (offsets % size).any():
            raise PtxError(f"{size} bytes at an address of {self.name} that is not a multiple")
        return (offsets // GRANULE)[:, None] + np.arange(max(1, size // GRANULE))

    def _require(
        self, good: np.ndarray, offsets: np.ndarray, threads: np.ndarray, fault: str
    ) -> None:
        if not good.all():
            bad = np.nonzero(~good.reshape(len(offsets), -1).all(axis=1))[0][0]
            raise PtxError(f"byte {offsets[bad]} of {self.name} {fault} (thread {threads[bad]})")


class SharedMemory(Memory):
    """The shared memory of a CTA, which also knows what is in flight.

    `cp.async` writes at some time between its issue and its wait, wgmma reads in such a time.
    """

    BASE = 1024  # the address of its first byte: 0 is no place, and swizzles need this alignment

    def __init__(self, size: int, clock: Clock | None) -> None:
        data = np.full(-(-size // 16) * 16, 0xFF, np.uint8)
        unwritten = np.ones(len(data) // GRANULE, bool)
        super().__init__(
            "shared memory", data, writable=True, unwritten=unwritten, clock=clock, private=True
        )
        self._arriving = np.zeros(len(unwritten), bool)
        self._being_read = np.zeros(len(unwritten), np.int32)
        self._unfenced = np.zeros(len(unwritten), bool)

    def load(self, offsets: np.ndarray, size: int, count: int, threads: np.ndarray) -> np.ndarray:
        if self._arriving.any():
            granules = self._granules(offsets, size * count)
            self._require(~self._arriving[granules], offsets, threads, "has not arrived yet")
        return super().load(offsets, size, count, threads)

    def store(self, offsets: np.ndarray, values: np.ndarray, threads: np.ndarray) -> np.ndarray:
        granules = super().store(offsets, values, threads)
        busy = self._arriving[granules] | (self._being_read[granules] > 0)
        self._require(~busy, offsets, threads, "is written while a copy or product is in flight")
        self._unfenced[granules] = True
        return granules

    def fence(self) -> None:
        """Let products, which read by another path than threads write (a proxy), see all writes."""
        self._unfenced[:] = False

    def begin_copy(self, offsets: np.ndarray, values: np.ndarray, threads: np.ndarray) -> Access:
        """Store what a copy will bring; nothing may touch it before `end_copy`."""
        granules = self.store(offsets, values, threads)
        self._arriving[granules] = True
        # The ISA asks for a fence here too, but Triton 3.6 makes none behind cp.async.
        self._unfenced[granules] = False
        return Access(granules, threads)

    def end_copy(self, copy: Access) -> None:
        self._arriving[copy.granules] = False
        if self.clock is not None:
            thread = np.repeat(copy.threads, copy.granules.shape[1])
            self._writes.record(copy.granules.ravel(), thread, self.clock)

    def end_awaited_copy(self, copy: Access) -> None:
        """End a copy that all threads have waited for, so that it is before all they will do."""
        self._arriving[copy.granules] = False
        if self.clock is not None:
            self._writes.time[copy.granules] = -1

    def begin_read(
        self, offsets: np.ndarray, size: int, count: int, threads: np.ndarray
    ) -> tuple[np.ndarray, Access]:
        """Load for a product of all these threads, which goes on reading until `end_read`."""
        first = np.full(len(offsets), threads[0])
        values = self.load(offsets, size, count, first)
        granules = self._granules(offsets, size * count)
        self._require(~self._unfenced[granules], offsets, first, "is read by wgmma without a fence")
        self._being_read[granules] += 1
        access = Access(granules, threads)
        self._record_product(access)
        return values, access

    def end_read(self, access: Access) -> None:
        self._being_read[access.granules] -= 1
        self._record_product(access)

    def _record_product(self, access: Access) -> None:
        """Remember that the last of the threads reads as well as the first: that all do."""
        if self.clock is not None:
            for number in (access.threads[0], access.threads[-1]):
                thread = np.full(access.granules.size, number)
                self._reads.record(access.granules.ravel(), thread, self.clock)


@dataclass(frozen=True)
class Access:
    """Granules [n, k] of shared memory in flight, and the threads: one a row, or all for all."""

    granules: np.ndarray
    threads: np.ndarray


class GlobalMemory:
    """Tensors in an address space so wide that no address outside one is inside another.

    Attributes:
        tensor_maps: descriptors by number, which is what a kernel takes for their address.
    """

    _SPACING = 1 << 40

    def __init__(self) -> None:
        self._tensors: list[Memory] = []
        self.tensor_maps: dict[int, TensorMap] = {}

    def add(self, memory: Memory) -> int:
        """Return the address of its first byte."""
        self._tensors.append(memory)
        return len(self._tensors) * self._SPACING + self._SPACING // 2

    def parts(self, addresses: np.ndarray) -> list[tuple[np.ndarray | slice, Memory, np.ndarray]]:
        """Return each tensor that the addresses are in, with their places in it."""
        numbers = addresses // self._SPACING
        if (numbers == numbers[0]).all():
            return [(slice(None), *self._locate(int(numbers[0]), addresses))]
        chosen = [numbers == number for number in np.unique(numbers)]
        return [(c, *self._locate(int(numbers[c][0]), addresses[c])) for c in chosen]

    def _locate(self, number: int, addresses: np.ndarray) -> tuple[Memory, np.ndarray]:
        if not 1 <= number <= len(self._tensors):
            raise PtxError(f"an access at {addresses[0]:#x}, where there is no tensor")
        start = number * self._SPACING + self._SPACING // 2
        return self._tensors[number - 1], addresses - start
