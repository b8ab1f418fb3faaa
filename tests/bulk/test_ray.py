"""Bulk on a Ray cluster of two nodes: the same folder as without, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bark_fast import InputError
from bark_fast.bulk import run
from bark_fast.bulk.ray import Actors
from bark_fast.bulk.ray import run as run_on_ray
from helpers.checkpoints import Checkpoint

from .conftest import manifest, quick, tree, write_jsonl

ROOT = Path(__file__).parents[2]
ROWS = [
    *(quick(i, f"Row {i} is here. It goes on.", max_semantic_tokens=12) for i in range(120)),
    {"id": 3, "text": "once more"},
    {"text": "no id"},
    quick("nobody", voice="nobody"),
    "no row",
]
OPTIONS = {"device": "cpu"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Return a cluster of two nodes on this machine, with room for an actor each."""
    if find_spec("ray") is None:
        pytest.skip("needs ray: pip install 'bark-fast[ray]'")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.fixture(scope="module")
def undisturbed(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone") / "out"
    run(ROWS, out, bark=small.bark)
    return tree(out)


def process_of_an_actor(out: Path) -> int:
    """Return the process of an actor that has said something, as its journal is called."""
    journal = next((out / ".bark-fast").glob("journal.*.jsonl"))
    return int(journal.name.split("-")[-2])


def while_running(out: Path, n_files: int, act: Callable[[], None]) -> threading.Thread:
    """Do something when so many rows are done."""

    def wait() -> None:
        while len(list(out.glob("*.wav"))) < n_files:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_two_nodes_make_the_same_folder(
    cluster: Any, small: Checkpoint, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"model": str(small.folder), "model_options": OPTIONS}
    options |= {"address": cluster.address, "block_rows": 10}
    reports: list[int] = []
    summary = run_on_ray(ROWS, out, **options, report=lambda s: reports.append(s.done))
    assert (summary.done, summary.skipped, summary.failed) == (120, 0, 4)
    assert reports[-1] == 120
    assert tree(out) == undisturbed
    # Without Ray, too, all is known.
    assert run(ROWS, out, bark=small.bark).skipped == 120


def test_an_actor_that_is_killed_costs_what_it_had_under_way(
    cluster: Any, small: Checkpoint, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        killed.append(process_of_an_actor(out))
        os.kill(killed[0], signal.SIGKILL)

    thread = while_running(out, 10, kill)
    summary = run_on_ray(
        ROWS, out, model=str(small.folder), model_options=OPTIONS, address=cluster.address,
        block_rows=5,
    )  # fmt: skip
    thread.join()
    assert killed
    assert (summary.done, summary.failed) == (120, 4)
    assert tree(out) == undisturbed


def test_a_driver_that_is_killed_is_begun_again(
    cluster: Any, small: Checkpoint, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS[:-1])
    rows.write_text(rows.read_text() + '"no row"\n')
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bark_fast", "bulk", str(rows), str(out)]
    command += ["--model", str(small.folder), "--device", "cpu", "--ray", cluster.address]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while len(list(out.glob("*.wav"))) < 10 and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, driver.communicate()
    assert not list(out.glob("manifest*"))
    again = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert again.returncode == 1, again.stderr  # four rows are wrong
    assert "120 of 124 rows done" in again.stderr
    ours = {name: content for name, content in tree(out).items() if "manifest" not in name}
    assert ours == {k: v for k, v in undisturbed.items() if "manifest" not in k}
    assert [entry["sha256"] for entry in manifest(out)][:120] == [
        entry["sha256"] for entry in manifest_of(undisturbed)
    ][:120]


def manifest_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files["manifest-00000.jsonl"].splitlines()]


def test_a_node_that_is_removed_costs_what_it_had_under_way(
    cluster: Any, small: Checkpoint, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    thread = while_running(
        out, 10, lambda: cluster.remove_node(cluster.second, allow_graceful=False)
    )
    summary = run_on_ray(
        ROWS, out, model=str(small.folder), model_options=OPTIONS, address=cluster.address,
        block_rows=5,
    )  # fmt: skip
    thread.join()
    assert (summary.done, summary.failed) == (120, 4)
    assert tree(out) == undisturbed


def test_too_many_errors_end_a_run(cluster: Any, small: Checkpoint, tmp_path: Path) -> None:
    rows = [{"id": i} for i in range(8)]
    summary = run_on_ray(
        rows, tmp_path / "out", model=str(small.folder), model_options=OPTIONS,
        address=cluster.address, block_rows=2, max_errors=3,
    )  # fmt: skip
    assert summary.ended_early
    assert not list((tmp_path / "out").glob("manifest*"))


def test_the_stage_in_a_pipeline(cluster: Any, small: Checkpoint, tmp_path: Path) -> None:
    import ray.data

    from bark_fast.bulk.ray import SpeakRows
    from bark_fast.bulk.speaker import RowOptions

    ray.init(address=cluster.address, ignore_reinit_error=True, log_to_driver=False)
    rows = [quick(str(i), page=i) for i in range(4)] + [quick("a/b", page=5)]
    said = ray.data.from_items(rows).map_batches(
        SpeakRows,
        fn_constructor_kwargs={
            "out": str(tmp_path / "out"),
            "model": str(small.folder),
            "model_options": OPTIONS,
            "options": RowOptions(ignored=["page"]),
        },
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2),
        num_cpus=1,
    )
    entries = sorted(said.take_all(), key=lambda row: row["page"])
    ray.shutdown()
    assert [entry["error"] is None for entry in entries] == [True] * 4 + [False]
    assert all((tmp_path / "out" / entry["path"]).exists() for entry in entries[:4])
    assert "id must name a file" in entries[4]["error"]


def test_a_cluster_without_room_or_address(small: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="room for one"):
        Actors(cpus=3).resolved({"CPU": 2.0})
    assert Actors().resolved({"CPU": 8.0}) == (8, 1.0, 0.0)
    assert Actors().resolved({"CPU": 8.0, "GPU": 2.0}) == (2, 1.0, 1.0)
    assert Actors(gpus=0.5).resolved({"CPU": 8.0, "GPU": 2.0}) == (4, 1.0, 0.5)
    assert Actors(3, gpus=0).resolved({"CPU": 8.0, "GPU": 2.0}) == (3, 1.0, 0)
    for wrong in ({"number": 0}, {"cpus": 0}, {"gpus": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Actors(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install 'bark-fast[ray]'")
@pytest.mark.parametrize(
    "address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:99999"]
)
def test_nobody_at_the_address(address: str, small: Checkpoint, tmp_path: Path) -> None:
    with socket.socket() as free:  # it does not listen
        free.bind(("127.0.0.1", 0))
        address = address.format(port=free.getsockname()[1])
        with pytest.raises(InputError, match="address must be that of a Ray cluster"):
            run_on_ray(ROWS, tmp_path / "out", model=str(small.folder), address=address)
