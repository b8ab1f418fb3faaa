"""Keep an engine for a torch module's weights, for as long as they stay what they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_fast.checkpoint.config import NETWORKS, Config
from bark_fast.checkpoint.stored import TensorsInMemory
from bark_fast.checkpoint.weights import check_tensors
from bark_fast.devices import resolve_dtype, resolve_impl
from bark_fast.engine.build import load_engine
from bark_fast.engine.driver import Driver
from bark_fast.engine.engine import Engine
from bark_fast.engine.options import EngineOptions
from bark_fast.errors import CheckpointError
from bark_fast.hf.not_served import NotServedError
from bark_fast.process import HomeProcess

_TRANSFORMERS = tuple(f"{network}." for network in NETWORKS.values())
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}


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
    """The memory of tensors at one moment, and what tells whether its content has changed.

    The memory is kept alive, so that no other tensor can get its address meanwhile. Torch counts
    the edits of a tensor, but not those through `.data`, which old optimizers and LoRA merges use:
    for these, a few elements of each tensor are compared.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._memory = [tensor.detach() for tensor in tensors.values()]
        self._states = {name: _state(tensor) for name, tensor in tensors.items()}
        self._samples = _samples(tensors)
        self._sampled = [torch.cat(views) for views in self._samples]

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return True if these tensors are the same and, as far as can be seen, unchanged.

        An inference tensor never is surely.
        """
        return (
            tensors.keys() == self._states.keys()
            and all(
                not tensor.is_inference() and _state(tensor) == self._states[name]
                for name, tensor in tensors.items()
            )
            and all(
                torch.equal(torch.cat(views), before)
                for views, before in zip(self._samples, self._sampled, strict=True)
            )
        )


def _samples(tensors: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Return views of a few evenly spaced elements of each tensor, as integers, by kind."""
    views: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors.values():
        if tensor.numel():
            extent = 1 + sum(
                (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
            )
            # Bits are compared and not numbers, because NaN is not equal to itself.
            flat = tensor.detach().as_strided((extent,), (1,)).view(_BITS[tensor.element_size()])
            view = flat[:: -(-extent // _N_SAMPLES)]
            views.setdefault((view.device, view.dtype), []).append(view)
    return list(views.values())


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_N_SAMPLES = 64


def _state(tensor: Tensor) -> tuple[object, ...]:
    """Return where a tensor is, what it is there, and how often it was edited."""
    return (
        tensor.data_ptr(),
        None if tensor.is_inference() else tensor._version,  # an inference tensor counts none
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
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

    def find(self, tensors: Mapping[str, Tensor], config: ServingConfig) -> Driver | None:
        """Return the driver of an engine for these weights; None if one can be built.

        Args:
            tensors: the module's, by the names that a checkpoint has for them.

        Raises:
            NotServedError: they are not what an engine for this configuration runs on.
        """
        self._home.check()
        with self._lock:
            if self._holds(tensors, config):
                return self._driver
            self._forget()  # before another takes its memory
        check_weights(tensors, config.model, offload=config.offload)
        return None

    def build(self, tensors: Mapping[str, Tensor], config: ServingConfig) -> Driver:
        """Return the driver of a new engine for weights that `find` has checked.

        Raises:
            InputError: the kernels or options that were asked for do not run here.
        """
        with self._lock:
            if self._driver is None or not self._holds(tensors, config):
                self._forget()
                driver = _build(tensors, config)
                self._config, self._snapshot = config, Snapshot(tensors)
                self._driver = driver
            return self._driver

    def drop_if_changed(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Give up the engine, and the old weights that it keeps, if these are other weights.

        Args:
            tensors: returns them, or raises NotServedError if there are none.
        """
        self._home.check()
        with self._lock:
            if self._driver is None:
                return
            try:
                same = self._holds(tensors(), self._config)
            except NotServedError:
                same = False
            if not same:
                self._forget()

    def drop(self) -> None:
        """Give up the engine."""
        self._home.check()
        with self._lock:
            self._forget()

    def _is_idle(self) -> bool:
        """Return True if a copy in a fork could be used."""
        return not self._lock.locked()

    def _holds(self, tensors: Mapping[str, Tensor], config: ServingConfig | None) -> bool:
        snapshot = self._snapshot
        return snapshot is not None and config == self._config and snapshot.holds(tensors)

    def _forget(self) -> None:
        self._driver = self._config = self._snapshot = None


def _build(tensors: Mapping[str, Tensor], config: ServingConfig) -> Driver:
    first = next(t for name, t in tensors.items() if name.startswith(_TRANSFORMERS))
    device = config.device or first.device
    dtype = resolve_dtype("int8" if config.int8 else first.dtype, device)
    engine = load_engine(
        _stored(tensors),
        config.model,
        dtype=dtype,
        device=device,
        impl=resolve_impl(config.impl, device, dtype, int8=config.int8),
        options=config.options or EngineOptions(),
        offload=config.offload,
    )
    return Driver(engine)


def _stored(tensors: Mapping[str, Tensor]) -> TensorsInMemory:
    return TensorsInMemory({name: t.detach() for name, t in tensors.items()}, "BarkModel")


def check_weights(tensors: Mapping[str, Tensor], config: Config, *, offload: bool) -> None:
    """Check that an engine runs on these tensors.

    Raises:
        NotServedError: they are not of one device and a dtype of Bark's, or not those that the
            configuration asks for.
    """
    devices: set[torch.device] = set()
    dtypes: dict[str, set[torch.dtype]] = {"the transformers": set(), "the codec": set()}
    for name, tensor in tensors.items():
        devices.add(tensor.device)
        if tensor.is_floating_point():
            part = "the transformers" if name.startswith(_TRANSFORMERS) else "the codec"
            dtypes[part].add(tensor.dtype)
    allowed = [{"cpu"}] if offload else [{"cpu"}, {"cuda"}]
    if len(devices) != 1 or {device.type for device in devices} not in allowed:
        raise NotServedError(f"the weights are on {_listed(devices)}")
    for part, found in dtypes.items():
        if len(found) != 1 or not found <= _DTYPES:
            raise NotServedError(f"the weights of {part} are in {_listed(found)}")
    try:
        check_tensors(_stored(tensors), config)
    except CheckpointError as error:
        raise NotServedError(str(error)) from error
    _check_masks(tensors)


def _listed(things: Iterable[object]) -> str:
    return ", ".join(sorted(str(thing).removeprefix("torch.") for thing in things)) or "none"


def _check_masks(tensors: Mapping[str, Tensor]) -> None:
    """Check that the causal models attend to all that came before, which a buffer of theirs says.

    Raises:
        NotServedError: they attend to something else.
    """
    for name, mask in tensors.items():
        if not name.endswith(".attn.bias"):
            continue
        if not torch.equal(mask != 0, torch.ones_like(mask, dtype=torch.bool).tril()):
            raise NotServedError(f"{name} is not the mask of what came before")
