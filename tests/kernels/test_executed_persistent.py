"""The compiled persistent tiles, executed: copies by descriptors, mbarriers, and wgmma.

See `test_executed_ptx.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.kernels.triton.schedules import PERSISTENT, SHORT, trying
from helpers.kernel_cases import exact_linear
from helpers.kernels import assert_accurate, randn
from helpers.ptx import Code, Compiler, Device, PtxError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cpu_tensors")]

HALF = [torch.bfloat16, torch.float16]
PAGE_SIZE, HEAD_SIZE = 64, 64
# Two tiles of rows and two of columns for the two programs of a machine without a GPU; the last
# ones hang over. K is more than the copies in flight.
M, N, K = 260, 200, 256


def gelu_product(x: Tensor, weight: Tensor, *, persistent: bool = True) -> Tensor:
    if not persistent:
        return kernels.fused_linear(x, weight, gelu=True, impl="triton")
    with trying(PERSISTENT):
        return kernels.fused_linear(x, weight, gelu=True, impl="triton")


@pytest.mark.parametrize("dtype", HALF)
def test_each_program_takes_its_tiles(dtype: torch.dtype, ptx_compiler: Compiler) -> None:
    """Rows have the bits that the other tiles give them, alone and among others."""
    x, weight = randn(M, K, dtype=dtype), randn(N, K, seed=1, dtype=dtype) / 16
    with Device(ptx_compiler) as device:
        got = gelu_product(x, weight)
    code, programs = device.ran[-1]
    assert sorted(programs) == [(0, 0, 0), (1, 0, 0)]
    assert "wgmma.mma_async" in code.ptx
    assert "cp.async.bulk.tensor" in code.ptx
    exact, plain = (f(x, weight, gelu=True) for f in (exact_linear, kernels.fused_linear))
    assert_accurate(got, plain, exact)
    with Device(ptx_compiler, races=False), trying(SHORT):
        assert torch.equal(kernels.fused_linear(x, weight, gelu=True, impl="triton"), got)
    with Device(ptx_compiler, races=False):
        assert torch.equal(gelu_product(x, weight, persistent=False), got)
        assert torch.equal(gelu_product(x[256:].clone(), weight, persistent=False), got[256:])
        assert torch.equal(gelu_product(x[256:].clone(), weight), got[256:])


def test_keys_and_values(ptx_compiler: Compiler) -> None:
    dtype, rows, heads = torch.bfloat16, 70, 2
    width = heads * HEAD_SIZE
    x, weight = randn(rows, width, dtype=dtype), randn(3 * width, width, seed=1, dtype=dtype) / 11
    norm = (1 + randn(width, seed=2, dtype=dtype) / 10, None)
    pages = torch.full((2, 2, heads, PAGE_SIZE, HEAD_SIZE), torch.nan, dtype=dtype)
    k_pages, v_pages = pages[0].clone(), pages[1].clone()
    slots = torch.arange(rows) + 20
    with Device(ptx_compiler, writable=[k_pages, v_pages]), trying(PERSISTENT):
        q = kernels.qkv_to_pages(
            x, weight, None, norm=norm, k_pages=k_pages, v_pages=v_pages, slot_mapping=slots,
            impl="triton",
        )  # fmt: skip
    stored = [p.transpose(1, 2).flatten(0, 1)[slots].flatten(1) for p in (k_pages, v_pages)]
    got = torch.cat([q.flatten(1), *stored], dim=1)
    assert_accurate(
        got, kernels.fused_linear(x, weight, norm=norm), exact_linear(x, weight, norm=norm)
    )
    assert int(k_pages.isnan().sum()) == k_pages.numel() - rows * width


def test_a_residual(ptx_compiler: Compiler) -> None:
    dtype = torch.bfloat16
    x, weight = randn(64, K, dtype=dtype), randn(128, K, seed=1, dtype=dtype) / 16
    residual = randn(64, 128, seed=2, dtype=dtype)
    with Device(ptx_compiler), trying(PERSISTENT):
        got = kernels.fused_linear(x, weight, residual=residual, impl="triton")
    exact, plain = (f(x, weight, residual=residual) for f in (exact_linear, kernels.fused_linear))
    assert_accurate(got, plain, exact)


def test_what_keeps_copies_and_products_apart_is_needed(ptx_compiler: Compiler) -> None:
    """Without a wait for products or the barrier behind it, a copy overwrites what they read."""
    x, weight = randn(64, K, dtype=HALF[0]), randn(128, K, seed=1, dtype=HALF[0])

    def run(edit: Callable[[Code], Code]) -> Code:
        with Device(ptx_compiler, edit=edit) as device, trying(PERSISTENT):
            kernels.fused_linear(x, weight, impl="triton")
        return device.ran[-1][0]

    code = run(lambda code: code)
    first_wait = code.lines_of("wgmma", "wait_group")[0]
    copies = code.lines_of("cp", "async", "bulk")
    in_loop = [line for line in copies if line > first_wait]
    barriers = [line for line in code.lines_of("bar", "sync") if first_wait < line < in_loop[0]]
    assert barriers
    assert in_loop

    def without_all(lines: list[int]) -> Callable[[Code], Code]:
        def edit(code: Code) -> Code:
            for line in lines:
                code = code.without(line)
            return code

        return edit

    for lines in ([first_wait], barriers):
        with pytest.raises(PtxError, match=r"another thread|in flight"):
            run(without_all(lines))
