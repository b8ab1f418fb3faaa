"""Rows into a folder on a Ray cluster, and the stage for pipelines of Ray Data.

The driver reads the rows, keeps the manifest and says how far all are; actors, each with a model of
its own, say them. All write to one folder, which every node has to see. Each actor has a journal
there, so that nothing depends on Ray's memory: an actor or a node that ends costs what it had under
way, and a driver that ends is simply begun again.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bark_fast.bulk.ledger import Entry, Journal, Ledger, label_of, manifest_schema
from bark_fast.bulk.rows import RawRow
from bark_fast.bulk.runner import Run, Summary, check_max_errors
from bark_fast.bulk.speaker import RowOptions, RowSpeaker
from bark_fast.errors import InputError
from bark_fast.validation import check_integer, check_number

if TYPE_CHECKING:
    import pyarrow

_CONNECT_S = 10.0
BLOCKS_AT_ONCE = 2  # an actor's: the engine goes on with one while the other's last rows end


@dataclass(frozen=True)
class Actors:
    """How many actors a cluster gives to a run, and what each takes of a node.

    Attributes:
        number: of actors; None is as many as the cluster has room for now.
        cpus, gpus: of each; `gpus` None is 1 if the cluster has any, else 0.

    Raises:
        InputError: one is wrong.
    """

    number: int | None = None
    cpus: float = 1.0
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.number is not None:
            check_integer("actors.number", self.number, "an integer >= 1", 1, 2**31)
        check_number("actors.cpus", self.cpus, "a number above 0", 0, 2**31, low_open=True)
        if self.gpus is not None:
            check_number("actors.gpus", self.gpus, "a number >= 0", 0, 2**31)

    def resolved(self, cluster: Mapping[str, float]) -> tuple[int, float, float]:
        """Return (number, cpus, gpus) for a cluster with these resources.

        Raises:
            InputError: it has not even room for one.
        """
        have = {"CPU": cluster.get("CPU", 0.0), "GPU": cluster.get("GPU", 0.0)}
        gpus = self.gpus if self.gpus is not None else min(1.0, have["GPU"])
        room = have["CPU"] / self.cpus
        if gpus:
            room = min(room, have["GPU"] / gpus)
        if int(room) < 1:
            raise InputError(
                f"actors must be such that the cluster has room for one, got {self.cpus:g} CPUs "
                f"and {gpus:g} GPUs each where there are {have['CPU']:g} and {have['GPU']:g}"
            )
        return self.number or int(room), self.cpus, gpus


class SpeakRows:
    """A stage for `Dataset.map_batches` that says rows into a folder, each once.

        dataset.map_batches(
            SpeakRows,
            fn_constructor_kwargs={"out": "/shared/out", "model": "suno/bark"},
            batch_size=64,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=8, max_concurrent_calls_per_actor=2),
            num_gpus=1,
        )

    Columns are those of `read_rows`; the stage's result has the manifest's: id, path, seconds,
    seed, voice, sha256, error. Other columns need `options=RowOptions(ignored=None)`, and are kept.
    Rows that any actor has said into the folder before are not said again. Duplicate ids are not
    found.

    Args:
        out: the folder, which all nodes see.
        model, model_options: of `Bark.from_pretrained`.
        options: how rows are said.
        label: of the shard that the journal belongs to; for `run`.

    Raises:
        InputError, CheckpointError: as `Bark.from_pretrained`.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        model: str = "demo",
        model_options: Mapping[str, Any] | None = None,
        options: RowOptions | None = None,
        label: str = "",
    ) -> None:
        from bark_fast.bark import Bark

        worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}."
        journal = Journal(Path(out), label, worker=worker)
        bark = Bark.from_pretrained(model, **(model_options or {}))
        self._speaker = RowSpeaker(bark, journal, options or RowOptions())
        self._threads = ThreadPoolExecutor(thread_name_prefix="bark-fast block")

    async def __call__(self, batch: pyarrow.Table) -> AsyncIterator[pyarrow.Table]:
        """Say a block of rows, while others are being said; a failure of the folder is one."""
        loop = asyncio.get_running_loop()
        yield await loop.run_in_executor(self._threads, self._say, batch)

    def _say(self, batch: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        said: dict[int, dict[str, Any]] = {}

        def done(entry: Entry, is_new: bool) -> None:
            said[entry.row] = asdict(entry)

        self._speaker.say(iter(enumerate(batch.to_pylist())), done)
        entries = [said[i] for i in range(len(batch))]
        table = pyarrow.Table.from_pylist(entries, schema=manifest_schema())
        table = table.drop_columns(["row", "key"])
        for name in batch.column_names:
            if name not in table.column_names:
                table = table.append_column(name, batch[name])
        return table


class _SpeakPickled(SpeakRows):
    """The stage of `run`: rows come and entries go as pickles, whose types are those of Python."""

    def _say(self, batch: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        rows = (pickle.loads(each) for each in batch["item"].to_pylist())
        said: list[bytes] = []
        self._speaker.say(rows, lambda entry, is_new: said.append(pickle.dumps((entry, is_new))))
        return pyarrow.table({"item": pyarrow.array(said, pyarrow.binary())})


def run(
    rows: Iterable[RawRow],
    out: str | os.PathLike[str],
    *,
    model: str = "demo",
    model_options: Mapping[str, Any] | None = None,
    address: str | None = None,
    actors: Actors | None = None,
    block_rows: int = 64,
    format: str = "wav",
    manifest: str = "jsonl",
    seed: int = 0,
    pause_s: float = 0.25,
    shard: tuple[int, int] = (0, 1),
    ignored: Collection[str] | None = (),
    retry_errors: bool = False,
    max_errors: int | None = None,
    report: Callable[[Summary], None] | None = None,
) -> Summary:
    """Do what `bulk.run` does on a Ray cluster: the same folder, byte for byte.

    Args:
        rows, out: as in `bulk.run`; all nodes see the folder, and the voices' files. Rows are all
            read before the first is said.
        model, model_options: of `Bark.from_pretrained`, on each actor.
        address: of the cluster; None is the one that this program is connected to or RAY_ADDRESS
            names, else one on this machine for as long as the run takes.
        actors: how many, and what each takes; by default one a GPU, or one a CPU where there is
            no GPU.
        block_rows: that an actor takes at a time, and that are done again at most for each of its
            two blocks if it ends; those of them that are in its journal are not.
        format, ...: as in `bulk.run`.

    Raises:
        InputError: as `bulk.run`; or the cluster has no room for an actor.
        OSError: the folder takes no more.
    """
    options = RowOptions(format, seed, pause_s, ignored, retry_errors)
    check_max_errors(max_errors)
    check_integer("block_rows", block_rows, "an integer >= 1", 1, 2**20)
    folder = Path(out).absolute()  # actors have another working folder
    stage = {
        "out": str(folder),
        "model": os.path.abspath(model) if os.path.exists(model) else model,
        "model_options": model_options,
        "options": options,
        "label": label_of(shard),
    }
    with Ledger(folder, shard=shard, kind=manifest) as ledger, _connected(address):
        progress = Run(ledger, shard=shard, max_errors=max_errors, report=report)
        pickled = [pickle.dumps(row) for row in progress.screened(rows)]
        for entry, is_new in _said(pickled, stage, actors or Actors(), block_rows):
            progress.settle(entry, is_new)
            if not progress.goes_on():
                break
        return progress.finish()


def _said(
    pickled: list[bytes], stage: Mapping[str, Any], actors: Actors, block_rows: int
) -> Iterator[tuple[Entry, bool]]:
    """Yield what became of each row, in any order."""
    import pyarrow
    import ray
    import ray.data

    number, cpus, gpus = actors.resolved(ray.cluster_resources())
    if not pickled:
        return
    blocks = [
        pyarrow.table({"item": pyarrow.array(pickled[i : i + block_rows], pyarrow.binary())})
        for i in range(0, len(pickled), block_rows)
    ]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    number = min(number, len(blocks))
    said = ray.data.from_arrow(blocks).map_batches(
        _SpeakPickled,
        fn_constructor_kwargs=dict(stage),
        batch_size=None,  # a block as it is
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=1,  # a run goes on with the nodes that are left
            max_size=number,
            initial_size=number,
            max_tasks_in_flight_per_actor=2 * BLOCKS_AT_ONCE,
            max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
        ),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    for batch in said.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from map(pickle.loads, batch["item"].to_pylist())


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or begin one, and leave as it was."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "ray must be installed to use a cluster (pip install 'bark-fast[ray]')"
        ) from error
    if ray.is_initialized():
        yield
        return
    _check_answers(address or os.environ.get("RAY_ADDRESS"))
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Check that there is something at the address of a cluster; Ray itself tries for minutes.

    Raises:
        InputError: there is not.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # "auto", "local": Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> InputError:
    if address is None and "RAY_ADDRESS" not in os.environ:
        return InputError(f"address must be given where Ray cannot be begun here: {error}")
    return InputError(f"address must be that of a Ray cluster, got {address!r}: {error}")
