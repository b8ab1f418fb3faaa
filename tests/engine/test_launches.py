"""What an engine launches on a GPU, counted without one.

In a process of its own, because Triton's interpreter is chosen for a whole process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bark_fast.checkpoint.random import create_checkpoint

TESTS = Path(__file__).parents[1]
N_LAYERS = 2


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = create_checkpoint(tmp_path_factory.mktemp("launches") / "tiny")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "helpers.count_launches", str(folder)],
        capture_output=True, text=True, check=False, env={**environment, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def calls(counted: dict[str, Any], stage: str, call: str) -> list[dict[str, Any]]:
    found = [c for c in counted["calls"] if (c["stage"], c["call"]) == (stage, call)]
    assert found
    return found


def test_nothing_is_compiled_after_warm_up(counted: dict[str, Any]) -> None:
    assert counted["warmed"] > 20
    assert counted["late"] == []


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_launches_of_a_decode_step(counted: dict[str, Any], stage: str) -> None:
    """Five a layer, and one each for the embedding, the head and the draw. Steps that were
    enqueued ahead are not launched when their turn comes."""
    n_ahead = 0
    for call in calls(counted, stage, "decode") + calls(counted, stage, "run_ahead"):
        n_steps, rest = divmod(sum(call["launches"].values()), 5 * N_LAYERS + 3)
        assert rest == 0
        assert call["launches"].get("attention.decode_kernel", 0) == n_steps * N_LAYERS
        if call["call"] == "run_ahead":
            assert n_steps <= call["steps"]
            n_ahead += n_steps
        else:
            assert n_steps in (0, call["steps"])
    assert n_ahead > 0 or stage == "coarse"  # whose windows are one block


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_launches_of_a_prefill(counted: dict[str, Any], stage: str) -> None:
    """Seven a layer: two products are preceded by a layer norm."""
    for call in calls(counted, stage, "prefill"):
        assert sum(call["launches"].values()) == 7 * N_LAYERS + 3
        assert call["launches"]["attention.flash_kernel"] == N_LAYERS


def test_launches_of_a_fine_pass(counted: dict[str, Any]) -> None:
    for call in calls(counted, "fine", "run"):
        assert sum(call["launches"].values()) == 7 * N_LAYERS + 4
