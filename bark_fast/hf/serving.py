"""Keep an engine for a torch module's weights, for as long as they stay what they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast.checkpoint.config import NETWORKS, Config
from bark_fast.checkpoint.stored import TensorsInMemory
from bark_fast.devices import resolve_device, resolve_dtype, resolve_impl
from bark_fast.engine.build import load_engine
from bark_fast.engine.driver import Driver
from bark_fast.engine.engine import Engine
from bark_fast.engine.options import EngineOptions
from bark_fast.errors import InputError
from bark_fast.process import HomeProcess


@dataclass(frozen=True)
class ServingConfig:
    """Everything but the weights that an engine is built from.

    Attributes:
        impl: the kernels, as in `Bark.from_pretrained`.
        options: None is what suits the device.
        device: where the engine computes; None is where the weights are.
        offload: the weights stay on the host, and those of a stage are brought to `device`.
        int8: the engine has the weights in 8 bits, whatever the module's dtype.
    """

    model: Config
    impl: str
    options: EngineOptions | None
    device: torch.device | None = None
    offload: bool = False
    int8: bool = False


class Snapshot:
    """The memory of tensors at one moment, and the version of what was in it.

    The memory is kept alive, so that no other tensor can get its address meanwhile.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        # Inference tensors count no versions.
        self._versions = {
            name: None if tensor.is_inference() else tensor._version
            for name, tensor in tensors.items()
        }

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return True if these tensors are surely the same and unchanged.

        An inference tensor never is surely. What is written through `.data` goes unseen, as it does
        for torch's own autograd.
        """
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
    """Builds the engine of one module when it is asked for.

    A copy starts without an engine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._home = HomeProcess("a BarkModel", self._is_idle)
        self._driver: Driver | None = None
        self._config: ServingConfig | None = None
        self._snapshot: Snapshot | None = None

    def __reduce__(self) -> tuple[type[Serving], tuple[()]]:
        return Serving, ()

    @property
    def engine(self) -> Engine | None:
        """The engine that is built at the moment, None if there is none."""
        return None if self._driver is None else self._driver.engine

    def driver(self, tensors: Mapping[str, Tensor], config: ServingConfig) -> Driver:
        """Return the driver of an engine for these weights; a new one if something has changed.

        Args:
            tensors: those of a state_dict.

        Raises:
            InputError: the weights are not on a device or in a dtype that Bark runs in.
            CheckpointError: they are not those that the configuration asks for.
        """
        self._home.check()
        with self._lock:
            if self._driver is None or config != self._config or not self._holds(tensors):
                self._forget()  # before another takes its memory
                driver = _build(tensors, config)
                self._config, self._snapshot = config, Snapshot(tensors)
                self._driver = driver
            return self._driver

    def drop_if_changed(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Give up the engine, and the old weights that it keeps, if these are other weights."""
        self._home.check()
        with self._lock:
            if self._driver is not None and not self._holds(tensors()):
                self._forget()

    def drop(self) -> None:
        """Give up the engine."""
        self._home.check()
        with self._lock:
            self._forget()

    def _is_idle(self) -> bool:
        """Return True if a copy in a fork could be used."""
        return not self._lock.locked()

    def _holds(self, tensors: Mapping[str, Tensor]) -> bool:
        return self._snapshot is not None and self._snapshot.holds(tensors)

    def _forget(self) -> None:
        self._driver = self._config = self._snapshot = None


def _build(tensors: Mapping[str, Tensor], config: ServingConfig) -> Driver:
    device, dtype = _placement(tensors)
    if config.device is not None:
        device = config.device
    chosen = resolve_dtype("int8" if config.int8 else dtype, device)
    engine = load_engine(
        TensorsInMemory(tensors, "BarkModel"),
        config.model,
        dtype=chosen,
        device=device,
        impl=resolve_impl(config.impl, device, chosen, int8=config.int8),
        options=config.options or EngineOptions(),
        offload=config.offload,
    )
    return Driver(engine)


def _placement(tensors: Mapping[str, Tensor]) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype of the three transformers."""
    networks = tuple(NETWORKS.values())
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(networks) and tensor.is_floating_point()
    }
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) != 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise InputError(
            f"{', '.join(networks)} must have weights of one dtype, got {names or 'none'}"
        )
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise InputError(f"every weight must have its data, got {name} on the meta device")
    first = next(iter(weights.values()))
    return resolve_device(first.device), dtypes.pop()
