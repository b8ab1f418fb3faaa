"""The lookup of backends, and the contract that all of them offer."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import get_args

import pytest
import torch

from bark_fast import kernels
from bark_fast.kernels import Backend, dispatch
from bark_fast.kernels.cpu import build, choice
from bark_fast.kernels.cpu.native import NativeBackend
from bark_fast.kernels.cpu.onednn import OneDnnBackend

OPERATIONS = sorted(
    name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if name[0] != "_"
)


@pytest.mark.parametrize("impl", get_args(kernels.Impl))
def test_there_is_one_backend_of_each_name(impl: kernels.Impl) -> None:
    backend = kernels.backend(impl)
    assert isinstance(backend, Backend)
    assert kernels.backend(impl, pdl=False) is backend
    assert (kernels.backend(impl, pdl=True) is backend) == (impl != "triton")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"impl must be one of torch, .*triton, got 'cuda'"):
        kernels.backend("cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", get_args(kernels.Impl))
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_backend_takes_what_the_contract_names(impl: kernels.Impl, name: str) -> None:
    """An implementation that passes options on by name is held by the tests of its results."""
    contract = inspect.signature(getattr(Backend, name)).parameters
    taken = inspect.signature(getattr(kernels.backend(impl), name)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        assert set(taken) - {"options"} <= set(contract)
        return
    expected = {key: parameter for key, parameter in contract.items() if key != "self"}
    assert list(taken) == list(expected)
    for key, parameter in expected.items():
        assert (taken[key].kind, taken[key].default) == (parameter.kind, parameter.default), key


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_functions_too(name: str) -> None:
    function = getattr(kernels, name)
    assert name in kernels.__all__
    assert function.__doc__ == getattr(Backend, name).__doc__
    assert inspect.signature(function).parameters["impl"].default == "torch"


def test_sampling_needs_positions() -> None:
    rows = {name: torch.ones(1) for name in ("temperature", "top_p", "min_eos_p")}
    integers = ("top_k", "seeds", "min_new_tokens", "suno_rules")
    rows |= {name: torch.zeros(1, dtype=torch.int64) for name in integers}
    metadata, space = kernels.SamplingMetadata(**rows), kernels.TokenSpace(stage=0)
    with pytest.raises(ValueError, match="positions"):
        kernels.sample(torch.zeros(1, 3), metadata, space)


def test_triton_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "from bark_fast import kernels\n"
        "assert not kernels.can_run_triton(torch.device('cpu'))\n"
        "kernels.layer_norm(torch.ones(1, 4), torch.ones(4), None, impl='cpu')\n"
        "try: kernels.backend('triton')\n"
        "except ImportError: print('missing')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "missing", done.stderr


@pytest.mark.parametrize("faster", ["native", "cpu"])
def test_matrix_tiles_are_chosen_by_measurement(
    monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    """As if this CPU had AMX: who is faster then serves bfloat16, and float32 stays as it is."""
    seconds = {NativeBackend: 1.0, OneDnnBackend: 2.0 if faster == "native" else 0.5}
    flags = build.cpu_flags()
    monkeypatch.setattr(build, "cpu_flags", lambda: {*flags, "amx_bf16"})
    monkeypatch.setattr(choice, "products_s", lambda backend, dtype: seconds[backend])
    monkeypatch.setattr(dispatch, "why_not_native", lambda *_: None)
    cpu = torch.device("cpu")
    assert kernels.choose_impl(cpu, torch.bfloat16) == faster
    assert kernels.choose_impl(cpu, torch.float32) == "native"
    assert (kernels.why_onednn(cpu, torch.bfloat16) is None) == (faster == "native")
    monkeypatch.setattr(build, "cpu_flags", lambda: flags - {"amx_bf16"})
    assert kernels.choose_impl(cpu, torch.bfloat16) == "native"


def test_both_backends_of_a_cpu_can_be_timed() -> None:
    state = torch.get_rng_state()
    missing = kernels.why_not_native(torch.device("cpu"), torch.float32)
    for backend in (OneDnnBackend,) if missing else (OneDnnBackend, NativeBackend):
        seconds = choice.products_s(backend, torch.float32)
        assert 0 < seconds < 600
        assert choice.products_s(backend, torch.float32) == seconds, "it is measured once"
    assert torch.equal(torch.get_rng_state(), state)
