"""Picks the backend that computes the operations.

* "torch": plain torch on any device, and the oracle of the others (`reference.py`).
* "cpu": the same with products by oneDNN and keys and values in float32 (`cpu/onednn.py`).
* "native": C, compiled at first use, for CPUs with AVX-512 or, in float32, AVX2; plain torch for
  the operations that it lacks and for weights that were not packed (`cpu/native.py`).
* "int8": the same with the weights of products in 8 bits.
* "triton": Triton kernels on CUDA devices, or on any device in Triton's interpreter (`triton/`).

A model asks for a backend once, when it is built. Triton is imported only when it is asked for,
because not every machine has it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import torch

from bark_fast.kernels.cpu import choice, native
from bark_fast.kernels.cpu.onednn import OneDnnBackend
from bark_fast.kernels.ops import Backend, Impl
from bark_fast.kernels.reference import TorchBackend

_WITHOUT_TRITON: dict[str, type[Backend]] = {
    "torch": TorchBackend,
    "cpu": OneDnnBackend,
    "native": native.NativeBackend,
    "int8": native.Int8Backend,
}


def backend(impl: Impl, *, pdl: bool = False) -> Backend:
    """Return the backend of this name; the same one every time.

    Args:
        pdl: use programmatic dependent launch for decode kernels (sm_90 and newer); only "triton"
            reads it.

    Raises:
        ValueError: there is no backend of this name.
    """
    return _backend(impl, pdl and impl == "triton")


@functools.cache
def _backend(impl: Impl, pdl: bool) -> Backend:
    if impl == "triton":
        from bark_fast.kernels.triton import TritonBackend

        return TritonBackend(pdl=pdl)
    if impl not in _WITHOUT_TRITON:
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    return _WITHOUT_TRITON[impl]()


def choose_impl(device: torch.device, dtype: torch.dtype) -> Impl:
    """Return the name of the backend that serves a model in `dtype` on `device` best."""
    if device.type != "cuda":
        return "cpu" if why_not_native(device, dtype) or why_onednn(device, dtype) else "native"
    return "triton" if can_run_triton(device) else "torch"


def why_not_native(device: torch.device, dtype: torch.dtype, *, int8: bool = False) -> str | None:
    """Return what keeps "native" (or "int8") from serving a model in `dtype` on `device`.

    None means that nothing does.
    """
    if device.type != "cpu":
        return f"it serves CPUs, not {device.type}"
    return native.why_not(dtype, int8=int8)


def why_onednn(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what speaks for "cpu" where "native" runs too; None if nothing does."""
    return choice.why_onednn(dtype) if device.type == "cpu" else None


def why_slow(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what a machine lacks whose CPU could run "native", as a compiler; None if nothing."""
    return native.why_slow(dtype) if device.type == "cpu" else None


def can_run_triton(device: torch.device) -> bool:
    """Return whether Triton's kernels run on `device`: on CUDA, or anywhere in its interpreter."""
    try:
        from triton.knobs import runtime
    except ImportError:
        return False
    return device.type == "cuda" or bool(runtime.interpret)


def can_launch_dependents(device: torch.device) -> bool:
    """Return whether `device` knows programmatic dependent launch."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


# The operations as functions ----------------------------------------------------------------------

Result = TypeVar("Result")


def _as_function(method: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function that calls this method of the backend that its argument `impl` names."""
    name = method.__name__

    @functools.wraps(method, updated=())  # a function is not abstract
    def operation(*args: Any, impl: Impl = "torch", **kwargs: Any) -> Result:
        result: Result = getattr(backend(impl), name)(*args, **kwargs)
        return result

    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())[1:]  # without self
    parameters.append(
        inspect.Parameter("impl", inspect.Parameter.KEYWORD_ONLY, default="torch", annotation=Impl)
    )
    operation.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return operation


embedding_sum = _as_function(Backend.embedding_sum)
layer_norm = _as_function(Backend.layer_norm)
fused_linear = _as_function(Backend.fused_linear)
qkv_to_pages = _as_function(Backend.qkv_to_pages)
paged_attention = _as_function(Backend.paged_attention)
bidirectional_attention = _as_function(Backend.bidirectional_attention)
codebook_sum = _as_function(Backend.codebook_sum)
sample = _as_function(Backend.sample)
random_words = _as_function(Backend.random_words)
pack_weight = _as_function(Backend.pack_weight)
kv_dtype = _as_function(Backend.kv_dtype)
decode_workspace = _as_function(Backend.decode_workspace)
