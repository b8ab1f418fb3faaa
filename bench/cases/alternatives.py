"""What changes to the kernels and the engine are worth, by the model of time.

Each changes what was recorded, its constants and grids, or what the model assumes: it takes away
what is in place, or tries what nobody has written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from bark_fast.kernels.aot import Launch
from bench.cases.load import LoadModel
from bench.cases.recording import Operation, independent
from bench.cases.time_model import SCHEDULERS

Operations = Sequence[Operation]


@dataclass(frozen=True)
class Alternative:
    """One change."""

    name: str
    apply: Callable[[LoadModel], LoadModel]


def each_launch(
    change: Callable[[Operation, Launch], Launch], *, decode: bool = True
) -> Callable[[LoadModel], LoadModel]:
    """Return an alternative's `apply` that changes the launches of decode steps, or of the rest."""

    def changed(operations: Operations) -> Operations:
        return [
            replace(op, launches=tuple(change(op, launch) for launch in op.launches))
            if op.decode == decode
            else op
            for op in operations
        ]

    return lambda model: replace(model, change=lambda ops: changed(model.change(ops)))


def one_part(op: Operation, launch: Launch) -> Launch:
    """Give a program all columns of W, as many trips to memory as that takes."""
    of = launch.constants
    if not op.decode or "BLOCK_N" not in of:
        return launch
    blocks, _, *others = launch.grid
    return replace(launch, grid=(blocks, 1, *others))


def long_splits(op: Operation, launch: Launch) -> Launch:
    """Give a program of attention 256 keys."""
    of = launch.constants
    if op.name != "attention" or of["SPLIT"] >= 256:
        return launch
    batch, heads, splits = launch.grid
    grid = batch, heads, ceil(splits * of["SPLIT"] / 256)
    return replace(_with(launch, SPLIT=256), grid=grid)


def split_sampler(op: Operation, launch: Launch) -> Launch:
    """Give each multiprocessor's schedulers one warp of a row, where one program has them all."""
    warps = launch.options.get("num_warps", SCHEDULERS)
    if op.name != "sample" or warps <= SCHEDULERS:
        return launch
    options = {**launch.options, "num_warps": SCHEDULERS}
    return replace(launch, options=options, grid=(launch.grid[0] * warps // SCHEDULERS,))


def plain_tiles(model: LoadModel) -> LoadModel:
    """Multiply persistent tiles at the rate of the others."""
    assumed = replace(model.model.assumed, persistent_share=model.model.assumed.tile_share)
    return replace(model, model=replace(model.model, assumed=assumed))


def without_graphs(model: LoadModel) -> LoadModel:
    """Launch prompts and fine passes from Python."""
    return replace(model, graphs=model.graphs | {"prefill": False, "fine": False})


def _with(launch: Launch, **constants: object) -> Launch:
    return replace(launch, constants={**launch.constants, **constants})


ALTERNATIVES = (
    Alternative("PDL off", each_launch(lambda op, launch: independent(launch))),
    Alternative("fc2 without parts", each_launch(one_part)),
    Alternative("attention in splits of 256 keys", each_launch(long_splits)),
    Alternative("tiles, none persistent", plain_tiles),
    Alternative("prefill and fine without graphs", without_graphs),
    Alternative("sampler split among programs (not in)", each_launch(split_sampler)),
)
