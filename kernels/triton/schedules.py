"""The launch numbers of the kernels: defaults, what else could win, and what was measured.

A default is a choice by arithmetic, with its reason beside it. On a GPU, `python -m bench tune`
times the candidates of every operation and writes the fastest to `tables/<device>.json`; a device
without a table takes that of the nearest. A table may give different numbers to different numbers
of rows only where they keep the order in which a row's terms are added (`order`), so that a row's
bits do not depend on its neighbours.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from bark_fast.kernels.triton.device import Device, device_of
from bark_fast.kernels.triton.launch import ceil_div

TABLES = Path(__file__).with_name("tables")
ROWS_AT_ONCE = 8  # of x in a decode product: the short side of mma.m16n8k16


@dataclass(frozen=True)
class Launch:
    """The numbers that one kind of launch leaves open."""

    @property
    def order(self) -> tuple[int, ...]:
        """The numbers that decide in which order a row's terms are added.

        By default all: how rows and columns are dealt to instructions is the compiler's choice.
        """
        return tuple(asdict(self).values())


@dataclass(frozen=True)
class DecodeLaunch(Launch):
    """The tiles of `linear_decode.decode_kernel`."""

    block_n: int
    block_k: int
    num_warps: int  # also the number of slices of K
    max_registers: int = 0  # a thread, for the next kernel's sake with PDL; 0 sets no limit
    programs: int = 0  # programs share the rows of x until there are so many

    @property
    def order(self) -> tuple[int, ...]:
        return self.block_k, self.num_warps

    def registers(self, k: int, *, pdl: bool) -> int | None:
        """Return the most registers of a thread, None for no limit; spilling costs more than any.

        Columns past K, as bark-small has, need some more. Without PDL no other kernel is to move
        in; there the limit only keeps the assembler from aiming lower than it can without spills.
        """
        if not pdl:
            return 80 if self.max_registers else 255
        return (self.max_registers + 8 * (k % self.block_k > 0)) if self.max_registers else None

    def grid(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        """Return the programs of m rows: blocks of W's rows, blocks of its columns, sharers."""
        blocks, splits = ceil_div(n, self.block_n), ceil_div(k, self.block_k)
        sharers = min(ceil_div(m, ROWS_AT_ONCE), self.programs // (blocks * splits))
        return blocks, splits, max(1, sharers)


@dataclass(frozen=True)
class TileLaunch(Launch):
    """The tiles of `linear_tile.tile_kernel`, or of `linear_persistent.persistent_kernel`."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    persistent: bool = False

    @property
    def order(self) -> tuple[int, ...]:
        # An instruction adds 16 columns of x, the next one the next 16, whatever the tile. Only
        # wgmma's width can differ: warps take 16 rows each, then share the columns.
        warps_of_rows = min(self.num_warps, self.block_m // 16)
        return (min(256, self.block_n * warps_of_rows // self.num_warps),)


@dataclass(frozen=True)
class DecodeAttentionLaunch(Launch):
    """The blocks of `attention.decode_kernel`."""

    split: int  # keys of one program
    block_kv: int
    num_warps: int
    num_stages: int

    @property
    def order(self) -> tuple[int, ...]:
        return self.split, self.block_kv, self.num_warps


@dataclass(frozen=True)
class FlashLaunch(Launch):
    """The blocks of `attention.flash_kernel`."""

    block_q: int
    block_kv: int
    num_warps: int
    num_stages: int


L = TypeVar("L", bound=Launch)

DEFAULTS: dict[type[Launch], Launch] = {
    # 16 rows of W, the long side of the instruction, x 1024 columns are 32 KiB of half precision a
    # program and a few MiB on the whole chip, as its memory latency requires, and 32 registers a
    # thread with 8 warps. N = 1024 makes 64 programs, 3072 and 4096 more than an H100 has
    # multiprocessors. At 64 registers four programs fit on one: two of a kernel and two of the
    # next, which so requests its weights meanwhile.
    DecodeLaunch: DecodeLaunch(block_n=16, block_k=1024, num_warps=8, max_registers=64),
    # The usual tile of compute-bound half-precision products; the stages fit sm_80's 163 KiB too.
    TileLaunch: TileLaunch(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3),
    # 64 keys are a page: 700 make 176 programs for one sequence of bark, more than an H100 has
    # multiprocessors. A block of 64 keys x 64 is 16 registers a thread, and as much of values.
    DecodeAttentionLaunch: DecodeAttentionLaunch(split=64, block_kv=64, num_warps=4, num_stages=1),
    # A block of 64 keys and values is 16 KiB, for 512 cycles of tensor cores with 128 queries: 32
    # bytes a cycle and multiprocessor, half of what L2 gives. 16 rows a warp leave two programs'
    # registers on a multiprocessor, of which one multiplies while the other takes exponentials.
    FlashLaunch: FlashLaunch(block_q=128, block_kv=64, num_warps=8, num_stages=2),
}
# Without tensor cores the operands of a product live in registers: smaller tiles.
DEFAULTS_FLOAT32: dict[type[Launch], Launch] = {
    DecodeLaunch: DecodeLaunch(block_n=64, block_k=256, num_warps=8),
    TileLaunch: TileLaunch(block_m=64, block_n=64, block_k=32, num_warps=4, num_stages=2),
    FlashLaunch: FlashLaunch(block_q=32, block_kv=32, num_warps=4, num_stages=1),
}
# A tile of 256 x 128 asks L2 for three quarters of what two of 128 x 128 do: at the tensor cores'
# full speed 48 and 64 bytes a cycle and multiprocessor, of about 40 to 60 that it gives. With 16
# warps the sums are 64 registers a thread, so that nothing spills. Three stages and the tile on its
# way out fill 208 of 227 KiB.
PERSISTENT = TileLaunch(
    block_m=256, block_n=128, block_k=64, num_warps=16, num_stages=3, persistent=True
)
# For so few rows that larger tiles leave multiprocessors idle.
SHORT = TileLaunch(block_m=64, block_n=128, block_k=64, num_warps=4, num_stages=3)
# For more rows than one instruction has. A program reads all of x from L2: twice the rows of W
# halve that, and where they make too few programs for an H100, some share the rows of x.
DEFAULTS_ROWS: dict[type[Launch], Launch] = {
    DecodeLaunch: DecodeLaunch(block_n=32, block_k=1024, num_warps=8, programs=132),
}


def default(kind: type[L], dtype: torch.dtype, *, rows: int = 1) -> L:
    """Return the launch that arithmetic suggests."""
    found = DEFAULTS_ROWS.get(kind) if rows > ROWS_AT_ONCE else None
    if dtype == torch.float32:
        found = DEFAULTS_FLOAT32.get(kind)
    launch = found or DEFAULTS[kind]
    assert isinstance(launch, kind)
    return launch


def candidates(kind: type[L], shape: tuple[int, ...]) -> list[L]:
    """Return the half-precision launches worth timing, the default first.

    Some may not compile for a device: they need more registers or shared memory than it has.

    Args:
        shape: (N, K) of a product, (D,) of attention.
    """
    first = default(kind, torch.float16)
    values = {name: _CANDIDATES[kind].get(name, (v,)) for name, v in asdict(first).items()}
    others = [kind(*numbers) for numbers in itertools.product(*values.values())]
    return [first, *(c for c in others if c != first and _is_sensible(c, shape))]


_CANDIDATES: dict[type[Launch], dict[str, tuple[int, ...]]] = {
    DecodeLaunch: {
        "block_n": (16, 32), "block_k": (512, 1024, 2048, 4096), "num_warps": (4, 8, 16, 32),
        "max_registers": (0, 64), "programs": (0, 132),
    },
    TileLaunch: {
        "block_m": (64, 128, 256), "block_n": (64, 128, 256), "block_k": (64, 128),
        "num_warps": (4, 8, 16), "num_stages": (2, 3, 4), "persistent": (False, True),
    },
    DecodeAttentionLaunch: {
        "split": (64, 128, 256), "block_kv": (32, 64), "num_warps": (2, 4, 8),
        "num_stages": (2, 4),
    },
    FlashLaunch: {
        "block_q": (64, 128), "block_kv": (32, 64, 128), "num_warps": (4, 8),
        "num_stages": (1, 2, 3),
    },
}  # fmt: skip


def _is_sensible(launch: Launch, shape: tuple[int, ...]) -> bool:
    """Return False for what cannot win, or cannot run."""
    if isinstance(launch, DecodeLaunch):
        # A warp's slice is a multiple of a chunk, not all of W is padding, and it fits in
        # registers, of which a limit is for 8 rows; sharers are for more.
        slices = launch.block_k % (32 * launch.num_warps) == 0
        in_flight = launch.block_n * launch.block_k // (32 * launch.num_warps)  # values a thread
        fits = 32 <= in_flight <= (64 if launch.max_registers else 128)
        alone = not (launch.max_registers and launch.programs)
        return slices and launch.block_k < 2 * shape[1] and fits and alone
    if isinstance(launch, TileLaunch):
        accumulators = launch.block_m * launch.block_n // (32 * launch.num_warps)
        shared = (launch.block_m + launch.block_n) * launch.block_k * 2 * launch.num_stages
        usual = launch.num_warps <= 8
        if launch.persistent:
            shared += launch.block_m * launch.block_n * 2  # the last tile, on its way out meanwhile
            large = min(launch.block_m, launch.block_n) >= 128  # few bytes from L2
            usual = large and launch.block_k == 64 and launch.num_stages >= 3
        return usual and 64 <= accumulators <= 128 and shared <= 227 * 1024
    if isinstance(launch, DecodeAttentionLaunch):
        return (
            launch.block_kv <= launch.split
            and launch.num_stages <= launch.split // (launch.block_kv) * 2
        )
    if isinstance(launch, FlashLaunch):
        return launch.block_q // launch.num_warps >= 16
    return True


# Tables ------------------------------------------------------------------------------------------


Key = tuple[str, str, tuple[int, ...]]
"""The kind of launch, the dtype, and the shape."""

ANY_ROWS = 2**31


@dataclass(frozen=True)
class Table:
    """The launches that were the fastest on a device.

    Attributes:
        entries: of each key the launches with the most rows that each is for, in rising order.
        measured: versions and times, for readers.
    """

    device: Device
    entries: Mapping[Key, tuple[tuple[int, Launch], ...]]
    measured: Mapping[str, Any]

    def find(self, key: Key, rows: int) -> Launch | None:
        """Return the launch for so many rows, None if nothing was measured."""
        return next((launch for most, launch in self.entries.get(key, ()) if rows <= most), None)

    def write(self, path: Path) -> None:
        """Write the table as JSON."""
        launches = [
            {
                "kind": kind, "dtype": dtype, "shape": shape,
                "launches": [{"rows": most, **asdict(launch)} for most, launch in entry],
            }
            for (kind, dtype, shape), entry in self.entries.items()
        ]  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"device": asdict(self.device), **self.measured, "entries": launches}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read what `write` wrote.

        Raises:
            ValueError: a row's bits would depend on the number of rows.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        device = content.pop("device")
        device["capability"] = tuple(device["capability"])
        kinds = {kind.__name__: kind for kind in DEFAULTS}
        entries = {}
        for entry in content.pop("entries"):
            key = entry["kind"], entry["dtype"], tuple(entry["shape"])
            numbers = [dict(launch) for launch in entry["launches"]]
            launches = tuple((n.pop("rows"), kinds[entry["kind"]](**n)) for n in numbers)
            if len({launch.order for _, launch in launches}) > 1:
                raise ValueError(f"{path}: the launches of {key} must add in one order")
            entries[key] = launches
        return cls(Device(**device), entries, content)


def nearest(device: Device, tables: list[Table]) -> Table | None:
    """Return the table of the device, else of the one that is most like it.

    Launches of a newer architecture may not run on an older one, so it is never taken.
    """

    def distance(table: Table) -> tuple[bool, int, int]:
        major, minor = device.capability
        other_major, other_minor = table.device.capability
        older = (major - other_major) * 10 + minor - other_minor
        size = abs(table.device.multiprocessors - device.multiprocessors)
        return table.device.name != device.name, older, size

    usable = [table for table in tables if table.device.capability <= device.capability]
    return min(usable, key=distance, default=None)


@functools.cache
def _table_of(device: torch.device) -> Table | None:
    if device.type != "cuda":
        return None
    tables = [Table.read(path) for path in sorted(TABLES.glob("*.json"))]
    return nearest(Device.of(device), tables) if tables else None


@dataclass
class Trial:
    """A launch under trial, and what was chosen meanwhile.

    Attributes:
        launch: used wherever one of its kind is chosen; None tries nothing.
        choices: the key and the rows of every choice.
    """

    launch: Launch | None
    choices: list[tuple[Key, int]] = field(default_factory=list)


_trial: ContextVar[Trial | None] = ContextVar("trial", default=None)


@contextmanager
def trying(launch: Launch | None) -> Iterator[Trial]:
    """Try `launch` inside the block."""
    trial = Trial(launch)
    token = _trial.set(trial)
    try:
        yield trial
    finally:
        _trial.reset(token)


def choose(kind: type[L], shape: tuple[int, ...], x: torch.Tensor, *, rows: int = 1) -> L:
    """Return the launch for an operation on x.

    Args:
        shape: see `candidates`.
        rows: of x; they change no row's bits.
    """
    key = kind.__name__, str(x.dtype), shape
    trial = _trial.get()
    if trial is not None:
        trial.choices.append((key, rows))
        if isinstance(trial.launch, kind):
            return trial.launch
    table = _table_of(x.device)
    found = None if table is None else table.find(key, rows)
    # (A table may come from another device.)
    if isinstance(found, kind) and (_is_hopper(x) or not getattr(found, "persistent", False)):
        return found
    launch = _tiles(shape, x, rows) if kind is TileLaunch else default(kind, x.dtype, rows=rows)
    assert isinstance(launch, kind)
    return launch


def _is_hopper(x: torch.Tensor) -> bool:
    # Older devices have no descriptors. On newer ones Triton 3.9 multiplies with 16 warps by the
    # instructions of sm_80, and sm_120 has half the shared memory.
    return device_of(x).capability[0] == 9


def _tiles(shape: tuple[int, ...], x: torch.Tensor, rows: int) -> TileLaunch:
    """Return the largest tiles of which there are enough for x's device."""
    usual = default(TileLaunch, x.dtype)
    device, (n, k) = device_of(x), shape
    if x.dtype.itemsize != 2 or device.capability[0] not in (8, 9):
        return usual  # that these tiles add in one order is known of mma.sync and wgmma alone
    # A descriptor's rows are whole units of 16 bytes.
    large = [PERSISTENT] if _is_hopper(x) and k % 8 == 0 else []
    for launch in (*large, usual):
        tiles = -(-rows // launch.block_m) * -(-n // launch.block_n)
        # With a third of the multiprocessors idle, smaller tiles on all of them are as fast.
        if 3 * tiles >= 2 * device.multiprocessors:
            return launch
    return SHORT


def with_rows(entries: Mapping[int, Launch]) -> tuple[tuple[int, Launch], ...]:
    """Return the fastest launches by rows as a table's entry: the last serves any more rows."""
    ordered = sorted(entries.items())
    merged: list[tuple[int, Launch]] = []
    for rows, launch in ordered:
        if merged and merged[-1][1] == launch:
            merged.pop()
        merged.append((rows, launch))
    return (*merged[:-1], (ANY_ROWS, merged[-1][1]))
