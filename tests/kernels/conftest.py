"""Fixtures that run a test on several implementations.

`impl` is plain torch, Triton as it is launched, and Triton with small tiles, so that small inputs
cross the tiles' edges; `triton_impl` is the last two; `compiled_impl` is Triton and the native CPU
kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import helpers.kernel_cases
import helpers.kernels
from bark_fast import kernels
from bark_fast.kernels.triton import attention, codebook, embedding, linear, sampling, schedules
from bark_fast.kernels.triton.schedules import (
    DecodeAttentionLaunch,
    DecodeLaunch,
    FlashLaunch,
    TileLaunch,
)
from helpers.kernels import DEVICE
from helpers.ptx import Compiler


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch with the smallest tiles that tl.dot accepts, 16 each way."""
    launches: list[schedules.Launch] = [
        DecodeLaunch(block_n=16, block_k=64, num_warps=2, programs=8),
        TileLaunch(block_m=16, block_n=16, block_k=16, num_warps=4, num_stages=1),
        FlashLaunch(block_q=16, block_kv=16, num_warps=4, num_stages=1),
        DecodeAttentionLaunch(split=32, block_kv=16, num_warps=4, num_stages=4),
    ]
    for launch in launches:
        monkeypatch.setitem(schedules.DEFAULTS, type(launch), launch)
        for table in (schedules.DEFAULTS_FLOAT32, schedules.DEFAULTS_ROWS):
            monkeypatch.delitem(table, type(launch), raising=False)
    monkeypatch.setattr(codebook, "BLOCK_F", 16)


@pytest.fixture(params=["torch", "triton", "triton-small"])
def impl(request: pytest.FixtureRequest) -> str:
    if request.param == "triton-small":
        request.getfixturevalue("small_tiles")
    return request.param.split("-")[0]


@pytest.fixture(params=["triton", "triton-small"])
def triton_impl(request: pytest.FixtureRequest) -> str:
    if request.param == "triton-small":
        request.getfixturevalue("small_tiles")
    return "triton"


@pytest.fixture(params=["triton", "native"])
def compiled_impl(request: pytest.FixtureRequest) -> str:
    missing = kernels.why_not_native(DEVICE, torch.float32)
    if request.param == "native" and missing:
        pytest.skip(f"no native kernels here: {missing}")
    return request.param


@pytest.fixture(scope="session")
def ptx_compiler() -> Iterator[Compiler]:
    """Compiles for sm_90, in a process of its own, and keeps what it compiled."""
    compiler = Compiler()
    yield compiler
    compiler.close()


@pytest.fixture
def dependent(monkeypatch: pytest.MonkeyPatch) -> kernels.Backend:
    """Launch programmatic dependents, which CPU tensors do not get by themselves."""
    for module in (attention, embedding, linear, sampling):
        monkeypatch.setattr(module, "can_launch_dependent", lambda x: True)
    return kernels.backend("triton", pdl=True)


@pytest.fixture
def cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the helpers' tensors on the CPU, where the PTX interpreter can read them."""
    for module in (helpers.kernels, helpers.kernel_cases):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
