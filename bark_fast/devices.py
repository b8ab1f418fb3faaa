"""Resolve "auto" and other names of devices, dtypes and kernels on this machine."""

from __future__ import annotations

from typing import cast

import torch

from bark_fast.errors import InputError, warn
from bark_fast.kernels import Impl, can_run_triton, choose_impl, why_not_native, why_slow
from bark_fast.process import check_fork
from bark_fast.validation import check_integer

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device that `device` means.

    Raises:
        InputError: it is not a device, or not one that this machine has.
        ProcessError: this process is a fork of one that used CUDA.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    requirement = 'device must be "auto", "cpu", "cuda" or "cuda:N"'
    if not isinstance(device, (str, torch.device)):
        raise InputError(f"{requirement}, got {device!r}")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{requirement}, got {device!r}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise InputError(f"{requirement}, got {str(device)!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device must be one that this machine has ({torch.cuda.device_count()} CUDA devices "
            f"seen), got {str(device)!r}"
        )
    if resolved.type == "cuda":
        check_fork("cuda")
    if resolved.type == "cuda" and resolved.index is None:
        # By number, because other threads have another current device.
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def resolve_accelerator(accelerator_id: int | None) -> torch.device:
    """Return the CUDA device of that number, to which offloaded weights are brought.

    Raises:
        InputError: this machine has no such device.
    """
    count = torch.cuda.device_count()
    if not count:
        raise InputError(
            "enable_cpu_offload needs a CUDA device to bring weights to, which this machine does "
            f"not have, got accelerator_id={accelerator_id!r}"
        )
    requirement = f"the number of one of the {count} CUDA devices"
    check_integer("accelerator_id", accelerator_id, requirement, 0, count - 1)
    assert accelerator_id is not None
    return torch.device("cuda", int(accelerator_id))


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the torch dtype that `dtype` means on `device`.

    "int8" is a dtype of weights: the one returned is that of what is computed with them.

    Raises:
        InputError: it is not a dtype that Bark runs in.
    """
    if dtype == "int8":
        runs_in_bfloat16 = why_not_native(device, torch.bfloat16, int8=True) is None
        return torch.bfloat16 if runs_in_bfloat16 else torch.float32
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        # Before sm_80 there is no bfloat16 in hardware.
        old = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0)
        return torch.float16 if old else torch.bfloat16
    resolved = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved not in _DTYPES.values():
        names = ", ".join(map(repr, [*_DTYPES, "int8"]))
        raise InputError(f'dtype must be "auto", {names}, got {dtype!r}')
    if resolved == torch.float16 and device.type == "cpu":
        warn(
            "float16 is slower than float32 on CPUs, which compute it by converting; running in "
            "float32 instead (bfloat16 is the fast half precision there)",
            stacklevel=4,
        )
        return torch.float32
    assert resolved is not None
    return resolved


def check_offload(offload: object, device: torch.device) -> None:
    """Check that weights can be kept off `device`, if `offload` asks for it.

    Raises:
        InputError: they cannot, or `offload` is not a bool.
    """
    if not isinstance(offload, bool):
        raise InputError(f"offload must be True or False, got {offload!r}")
    if offload and device.type == "cpu":
        raise InputError(
            "offload must be False on a CPU, whose memory is where weights would be kept, got True"
        )


def resolve_impl(
    impl: str, device: torch.device, dtype: torch.dtype, *, int8: bool = False
) -> Impl:
    """Return the kernels that `impl` means for a model in `dtype` on `device`.

    Args:
        int8: the weights are in 8 bits.

    Raises:
        InputError: there are no such kernels, or they cannot run there.
    """
    if int8:
        if impl != "auto":
            raise InputError(f'impl must be "auto" with dtype="int8", got {impl!r}')
        reason = why_not_native(device, dtype, int8=True)
        if reason is not None:
            raise InputError(f"dtype must be one that runs here, got 'int8': {reason}")
        return "int8"
    if impl == "auto":
        if (reason := why_slow(device, dtype)) is not None:
            warn(
                f"speech takes several times as long as this CPU needs: {reason} "
                "(bark-fast info says more)",
                stacklevel=4,
            )
        return choose_impl(device, dtype)
    if impl not in ("torch", "cpu", "native", "triton"):
        raise InputError(f'impl must be "auto", "torch", "cpu", "native" or "triton", got {impl!r}')
    if impl == "cpu" and device.type != "cpu":
        raise InputError(f'impl must be "triton", "torch" or "auto" on {device.type}, got {impl!r}')
    reason = why_not_native(device, dtype) if impl == "native" else None
    if reason is not None:
        raise InputError(f'impl must be one that runs here or "auto", got {impl!r}: {reason}')
    if impl == "triton" and not can_run_triton(device):
        raise InputError(
            f'impl must be "cpu", "torch" or "auto" on {device.type} (triton needs a CUDA device, '
            f"or its interpreter: TRITON_INTERPRET=1), got {impl!r}"
        )
    return cast(Impl, impl)
