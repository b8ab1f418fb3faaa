"""Changes to the kernels and the engine that the model of time can try before anybody writes them.

Each changes what was recorded (its constants and grids), or what the model assumes. Where a change
is in place already, it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from bark_fast.kernels.aot import Launch
from bench.cases.load import LoadModel
from bench.cases.recording import Operation
from bench.cases.time_model import SCHEDULERS, rounds_of_memory

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


def dependent(op: Operation, launch: Launch) -> Launch:
    """Launch as a programmatic dependent."""
    return replace(launch, options={**launch.options, "launch_pdl": True})


def independent(op: Operation, launch: Launch) -> Launch:
    """Launch after the kernel before has ended."""
    options = {k: v for k, v in launch.options.items() if k != "launch_pdl"}
    return replace(launch, options=options)


def one_trip(op: Operation, launch: Launch) -> Launch:
    """Request all columns of W at once."""
    if rounds_of_memory(op, launch) == 1:
        return launch
    return _with(launch, BLOCK_K=launch.constants["K"])


def one_tile(op: Operation, launch: Launch) -> Launch:
    """Read W once for all rows; the instructions of a tile stay as many, which is too few."""
    if "BLOCK_M" not in launch.constants or op.rows <= launch.constants["BLOCK_M"]:
        return launch
    return replace(_with(launch, BLOCK_M=op.rows), grid=launch.grid[:1])


def without_norm(op: Operation, launch: Launch) -> Launch:
    """Fold the layer norm into the weight, so that x goes into the product as it is."""
    return _with(launch, HAS_NORM=False) if launch.constants.get("HAS_NORM") else launch


def split_attention(keys: int) -> Callable[[Operation, Launch], Launch]:
    """Return a change to so many keys a program."""

    def change(op: Operation, launch: Launch) -> Launch:
        of = launch.constants
        if op.name != "attention" or of["SPLIT"] <= keys:
            return launch
        batch, heads, splits = launch.grid
        grid = batch, heads, splits * ceil(of["SPLIT"] / keys)
        return replace(_with(launch, SPLIT=keys, BLOCK_KV=min(keys, of["BLOCK_KV"])), grid=grid)

    return change


def split_sampler(op: Operation, launch: Launch) -> Launch:
    """Give each multiprocessor's schedulers one warp of a row, where one program has them all."""
    warps = launch.options.get("num_warps", SCHEDULERS)
    if op.name != "sample" or warps <= SCHEDULERS:
        return launch
    options = {**launch.options, "num_warps": SCHEDULERS}
    return replace(launch, options=options, grid=(launch.grid[0] * warps // SCHEDULERS,))


def persistent(model: LoadModel) -> LoadModel:
    """Multiply tiles of 256 x 128 by a persistent kernel, with the norm outside of its loop."""
    assumed = model.model.assumed
    share = assumed.persistent_share
    assumed = replace(assumed, tile_share=share, normed_tile_share=share)

    def larger(op: Operation, launch: Launch) -> Launch:
        return _with(launch, BLOCK_M=256) if "BLOCK_N" in launch.constants else launch

    changed = each_launch(larger, decode=False)(model)
    return replace(changed, model=replace(model.model, assumed=assumed))


def plain_tiles(model: LoadModel) -> LoadModel:
    """Keep the tiles, with the norm outside of their loop."""
    assumed = model.model.assumed
    assumed = replace(assumed, normed_tile_share=assumed.tile_share)
    return replace(model, model=replace(model.model, assumed=assumed))


def in_graphs(model: LoadModel) -> LoadModel:
    """Run every phase as a CUDA graph."""
    return replace(model, graphs=dict.fromkeys(model.graphs, True))


def all_of(*names: str) -> Callable[[LoadModel], LoadModel]:
    """Return the alternatives of these names, one after another."""

    def apply(model: LoadModel) -> LoadModel:
        for alternative in ALTERNATIVES:
            if alternative.name in names:
                model = alternative.apply(model)
        return model

    return apply


def _with(launch: Launch, **constants: object) -> Launch:
    return replace(launch, constants={**launch.constants, **constants})


ALTERNATIVES = (
    Alternative("PDL on (sm_90)", each_launch(dependent)),
    Alternative("PDL off", each_launch(independent)),
    Alternative("fc2 in one trip", each_launch(one_trip)),
    Alternative("W read once for all rows", each_launch(one_tile)),
    Alternative("norms folded (decode)", each_launch(without_norm)),
    Alternative("attention in splits of 64 keys", each_launch(split_attention(64))),
    Alternative("sampler split among programs", each_launch(split_sampler)),
    Alternative("norms outside of the tiles' loops", plain_tiles),
    Alternative("persistent tiles by descriptors", persistent),
    Alternative("graphs for prefill and fine", in_graphs),
    Alternative(
        "PDL, one trip, W once, norms, tiles, graphs",
        all_of(
            "PDL on (sm_90)",
            "fc2 in one trip",
            "W read once for all rows",
            "norms folded (decode)",
            "persistent tiles by descriptors",
            "graphs for prefill and fine",
        ),
    ),
)
