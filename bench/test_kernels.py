"""The cases of bench.kernels under pytest-benchmark: `pytest bench/test_kernels.py`."""

from __future__ import annotations

import pytest
import torch

from bark_fast.kernels import choose_impl
from bark_fast.kernels.aot import SHAPES
from bench.kernels import Case, cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16


@pytest.mark.parametrize(
    "case", cases(SHAPES["small"], DTYPE, DEVICE), ids=lambda case: case.name.replace(" ", "-")
)
def test_kernel(benchmark, case: Case) -> None:
    def run() -> None:
        case.ours(choose_impl(DEVICE))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"bytes": case.n_bytes, "flops": case.flops}
