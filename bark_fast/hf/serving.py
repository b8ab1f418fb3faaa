"""The engine that serves a torch module's weights, for as long as they stay what they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.stored import TensorsInMemory
from bark_fast.devices import resolve_device, resolve_dtype, resolve_impl
from bark_fast.engine.build import load_engine
from bark_fast.engine.driver import Driver
from bark_fast.engine.options import EngineOptions
from bark_fast.errors import InputError

_TRANSFORMERS = ("semantic", "coarse_acoustics", "fine_acoustics")


@dataclass(frozen=True)
class Setup:
    """What an engine is built for, beside the weights.

    Attributes:
        device: None is where the weights are.
        offload: the weights are on the host, and `device` is where they are brought to.
        int8: the engine has them in 8 bits, whatever the module's dtype.
    """

    config: Config
    impl: str
    options: EngineOptions | None
    device: torch.device | None = None
    offload: bool = False
    int8: bool = False


class Snapshot:
    """What tensors were at one moment: the same memory, the same version of it.

    The memory is kept, so that no other tensor can come to be at its address meanwhile.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        # Inference tensors count no versions.
        self._versions = {
            name: None if tensor.is_inference() else tensor._version
            for name, tensor in tensors.items()
        }

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are surely the same, unchanged: never so with an inference tensor. What is
        written through `.data` goes unseen, as it does for torch's own autograd."""
        return tensors.keys() == self._tensors.keys() and all(
            not tensor.is_inference()
            and _same(tensor, self._tensors[name])
            and tensor._version == self._versions[name]
            for name, tensor in tensors.items()
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.dtype == b.dtype
        and a.device == b.device
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


class Serving:
    """The engine of one module, built when it is asked for.

    A copy of it starts without an engine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._driver: Driver | None = None
        self._setup: Setup | None = None
        self._snapshot: Snapshot | None = None

    def __reduce__(self) -> tuple[type[Serving], tuple[()]]:
        return Serving, ()

    def driver(self, tensors: Mapping[str, Tensor], setup: Setup) -> Driver:
        """Who runs the engine for these weights, as `setup` says; a new one if either has changed.

        Args:
            tensors: a state_dict's.

        Raises:
            InputError: the weights are not on a device or in a dtype that Bark runs in.
            CheckpointError: they are not those that the configuration asks for.
        """
        with self._lock:
            if self._driver is None or setup != self._setup or not self._holds(tensors):
                self._forget()  # before another takes its memory
                driver = _build(tensors, setup)
                self._setup, self._snapshot = setup, Snapshot(tensors)
                self._driver = driver
            return self._driver

    def drop_if_changed(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Give up the engine, and what it keeps of the old weights, if these are others."""
        with self._lock:
            if self._driver is not None and not self._holds(tensors()):
                self._forget()

    def drop(self) -> None:
        """Give up the engine."""
        with self._lock:
            self._forget()

    def _holds(self, tensors: Mapping[str, Tensor]) -> bool:
        return self._snapshot is not None and self._snapshot.holds(tensors)

    def _forget(self) -> None:
        self._driver = self._setup = self._snapshot = None


def _build(tensors: Mapping[str, Tensor], setup: Setup) -> Driver:
    device, dtype = _placement(tensors)
    if setup.device is not None:
        device = setup.device
    chosen = resolve_dtype("int8" if setup.int8 else dtype, device)
    engine = load_engine(
        TensorsInMemory(tensors, "BarkModel"),
        setup.config,
        dtype=chosen,
        device=device,
        impl=resolve_impl(setup.impl, device, chosen, int8=setup.int8),
        options=setup.options or EngineOptions(),
        offload=setup.offload,
    )
    return Driver(engine)


def _placement(tensors: Mapping[str, Tensor]) -> tuple[torch.device, torch.dtype]:
    """Where the three transformers are, and in what."""
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(_TRANSFORMERS) and tensor.is_floating_point()
    }
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) != 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise InputError(
            f"{', '.join(_TRANSFORMERS)} must have weights of one dtype, got {names or 'none'}"
        )
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise InputError(f"every weight must have its data, got {name} on the meta device")
    first = next(iter(weights.values()))
    return resolve_device(first.device), dtypes.pop()
