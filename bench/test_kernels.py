"""Run the cases of the command `kernels` under pytest-benchmark: `pytest bench/test_kernels.py`."""

from __future__ import annotations

import pytest
import torch

from bark_fast.devices import resolve_impl
from bark_fast.kernels.aot import SHAPES
from bench.cases.kernels import CaseMaker, KernelCase
from bench.harness.timing import synchronize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16


def cases() -> list[KernelCase]:
    impl = resolve_impl("auto", DEVICE, DTYPE)
    # All cases are made before the first is run: one copy of each operand has to do.
    return list(CaseMaker(SHAPES["small"], DTYPE, DEVICE, impl, cache_bytes=0).all())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name.replace(" ", "-"))
def test_kernel(benchmark, case: KernelCase) -> None:
    def run() -> None:
        case.run()
        synchronize(DEVICE)

    with torch.inference_mode():
        benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"bytes": case.n_bytes, "flops": case.flops}
