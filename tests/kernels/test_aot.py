"""The compiled code of the kernels, for a GPU that this machine need not have.

These tests run in separate processes, because Triton's interpreter, which the other tests use, is
chosen for a whole process. `python -m bark_fast.kernels.aot` does all sizes, dtypes and targets.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_kernels_compile_well() -> None:
    done = run(
        "-m", "bark_fast.kernels.aot", "--sizes", "large", "--dtypes", "bfloat16", "--targets", "90"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in (
        "embedding (prompt)", "layer norm", "qkv to pages of 16 M=1", "fc2 + residual M=17",
        "fc1 + gelu prefill", "fc2 + residual M=1 pdl", "fine head",
        "attention (decode, pages of 16)", "attention (prefill, pages of 1024)",
        "sample (semantic)", "codebook sum",
    ):  # fmt: skip
        assert f"large {kernel}" in done.stdout
    assert "wgmma" in done.stdout
    assert "0 with faults" in done.stdout


BROKEN = """
from bark_fast.kernels import aot
from bark_fast.kernels.triton import schedules
real = aot.cases
aot.cases = lambda *a: (c for c in real(*a) if c[0] == "fc1 + gelu prefill")
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
