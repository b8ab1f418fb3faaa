"""The compiled code of the kernels, for a GPU that this machine need not have.

These tests run in separate processes, because Triton's interpreter, which the other tests use, is
chosen for a whole process. `python -m bark_fast.kernels.aot` does all sizes, dtypes and targets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PATH = os.pathsep.join([str(TESTS), str(TESTS.parent)])
pytestmark = pytest.mark.slow


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_kernels_compile_well() -> None:
    done = run(
        "-m", "bark_fast.kernels.aot", "--jobs", "2",
        "--sizes", "large", "--dtypes", "bfloat16", "--targets", "90",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in (
        "embedding (prompt)", "layer norm", "qkv to pages M=1", "fc2 + residual M=16",
        "fc1 + gelu prefill of 514", "fc2 + residual M=1 pdl", "fine head",
        "attention (decode)", "attention (prefill)", "sample (semantic)",
        "sample (after a coarse prompt)", "codebook sum",
    ):  # fmt: skip
        assert f"large {kernel}" in done.stdout
    assert "wgmma" in done.stdout
    assert "0 with faults" in done.stdout


def test_what_is_compiled_is_what_an_engine_launches() -> None:
    done = run("-m", "helpers.engine_launches", "large", PYTHONPATH=PATH)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shared"] > 30
    assert found["launched, not compiled"] == []
    assert found["compiled, not launched"] == []
    # What `python -m bench predict` adds up.
    assert found["recorded, not launched"] == []
    (of_the_codec,) = found["launched, not recorded"]
    assert of_the_codec.startswith("codebook.codebook_sum_kernel")


IN_THE_CACHE = """
import torch
from triton.runtime import JITFunction, driver
from bark_fast.kernels import aot
from bark_fast.kernels.triton.device import assuming
from helpers.stand_in_driver import Driver

driver.set_active(Driver(90))
launch = JITFunction.run
made = []
JITFunction.run = lambda kernel, *args, **kwargs: made.append((kernel, args, kwargs))
cases = dict(aot.cases(aot.SHAPES["small"], torch.bfloat16, pdl=True))
for name in ("fc2 + residual M=16 pdl", "out + residual prefill", "sample (fine) pdl"):
    made.clear()
    with assuming(aot.DEVICES[90]):
        cases[name]()
    (kernel, args, kwargs), = made
    (recorded,) = aot.record(cases[name])
    compiled = launch(kernel, *args, **kwargs | {"warmup": True})
    assert compiled.hash == aot.build(recorded, 90).hash, name
"""


def test_an_engine_finds_what_was_compiled_in_tritons_cache() -> None:
    done = run("-c", IN_THE_CACHE, PYTHONPATH=PATH)
    assert done.returncode == 0, done.stderr


BROKEN = """
from bark_fast.kernels import aot
from bark_fast.kernels.triton import schedules
real = aot.cases
aot.cases = lambda *a, **k: (c for c in real(*a, **k) if c[0] == "fc1 + gelu prefill")
with schedules.trying(schedules.TileLaunch({tile})):
    raise SystemExit(aot.main(["--sizes", "large", "--dtypes", "float16", "--targets", "80"]))
"""


@pytest.mark.parametrize(
    ("tile", "fault"),
    [
        ("256, 256, 64, 4, 1", "spills"),
        ("128, 128, 128, 8, 4", "shared memory"),
    ],
)
def test_a_bad_tile_is_found(tile: str, fault: str) -> None:
    done = run("-c", BROKEN.format(tile=tile))
    assert done.returncode == 1
    assert fault in done.stdout
