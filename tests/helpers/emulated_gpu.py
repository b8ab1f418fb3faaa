"""A GPU without a GPU: tensors that say they are on CUDA, and hold the host to the rules of one.

The engine, its stages and its networks run on it unchanged, with plain torch behind the kernels'
interface. Three rules hold, which real GPUs do not enforce and only slow programs or wrong numbers
show:

* Nothing asks a device tensor for its value, and nothing copies between host and device in a way
  that waits: `HostSyncError` names the operation. Copies go through pinned memory and do not block.
* What a copy brings to the host is there only after an event that was recorded behind it has been
  waited for. Before, the host reads rubbish.
* Pinned memory that a copy to the device reads must not change before such an event either.

`emulated_graphs` are its CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from bark_fast import ambient, kernels
from bark_fast.kernels import Backend
from bark_fast.kernels.triton import schedules

GPU = torch.device("cuda:0")
_PROPERTIES = SimpleNamespace(
    name="emulated", major=9, minor=0, multi_processor_count=132, total_memory=2**31
)
_CPU = torch.device("cpu")

_aten = torch.ops.aten
_ASK_THE_DEVICE = {
    _aten._local_scalar_dense.default,
    _aten.item.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten._unique2.default,
    _aten.is_nonzero.default,
    _aten.repeat_interleave.Tensor,
}


_INDEX = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default}


class HostSyncError(AssertionError):
    """The host waited for the device where it should not."""


class DeviceTensor(Tensor):
    """A tensor of the emulated GPU; `memory` is where its numbers are."""

    memory: Tensor

    @staticmethod
    def __new__(cls, memory: Tensor) -> DeviceTensor:
        # "meta" underneath: torch without CUDA refuses to index a tensor that is really there.
        tensor: DeviceTensor = Tensor._make_wrapper_subclass(
            cls, memory.shape, strides=memory.stride(), storage_offset=memory.storage_offset(),
            dtype=memory.dtype, device="meta",
        )  # fmt: skip
        tensor.memory = memory
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def data_ptr(self) -> int:
        return self.memory.data_ptr()

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        gpu = EmulatedGPU.current
        kwargs = dict(kwargs or {})
        if func is _aten.copy_.default:
            return gpu.copy(*args, **kwargs)
        if func is _aten._to_copy.default and "device" in kwargs:
            raise HostSyncError(
                f"a tensor {tuple(args[0].shape)} was copied from the device directly"
            )
        gpu.check(func, args)
        result = gpu.launch(func, _memory(args), _memory(kwargs), mutates=func._schema.is_mutable)
        if func._schema.is_mutable:
            return args[0]  # in place: the same tensor
        return _on_device(result)


def _memory(values: Any) -> Any:
    """Return `values` with memory in the place of device tensors."""

    def one(value: Any) -> Any:
        if isinstance(value, DeviceTensor):
            return value.memory
        if isinstance(value, torch.device) and value.type in ("cuda", "meta"):
            return _CPU
        return value

    return tree_map(one, values)


def _on_device(values: Any) -> Any:
    return tree_map(lambda v: DeviceTensor(v) if isinstance(v, Tensor) else v, values)


class _Moves(TorchFunctionMode):
    """Makes tensors on the emulated GPU, and pinned memory, where torch would ask a real one."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        gpu, kwargs = EmulatedGPU.current, dict(kwargs or {})
        if func is Tensor.pin_memory:
            return gpu.pin(args[0].clone())
        # torch would make a tensor of a number that is really on "meta".
        on_device = isinstance(args[0] if args else None, DeviceTensor)
        if func is Tensor.__setitem__ and on_device and not isinstance(args[2], Tensor):
            return args[0][args[1]].fill_(args[2])
        if func is torch.lstm and on_device:
            # One operation, as it is on a GPU; torch would take it apart into thousands.
            gpu.check(func, args)
            return _on_device(gpu.launch(func, _memory(args), _memory(kwargs)))
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.numpy, Tensor.tolist):
            return self._move(gpu, func, args, kwargs)
        pinned = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            # Kernels that are only counted write nothing; zeros are valid ids.
            func = torch.zeros if func is torch.empty else func
            return DeviceTensor(gpu.launch(func, args, {**kwargs, "device": _CPU}))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not isinstance(result, DeviceTensor):
            gpu.only_outside_of_graphs(f"{func.__name__} makes a tensor on the host")
        return gpu.pin(result) if pinned else result

    def _move(self, gpu: EmulatedGPU, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        source, given = args[0], [*args[1:], *kwargs.values()]
        target = next((a for a in given if isinstance(a, (torch.device, str))), None)
        dtype = next((a for a in given if isinstance(a, torch.dtype)), None)
        to_gpu = target is not None and torch.device(target).type == "cuda"
        if isinstance(source, DeviceTensor):
            if to_gpu or (func is Tensor.to and target is None):
                return source if dtype is None else func(source, dtype)
            gpu.refuse(f"Tensor.{func.__name__} of a tensor {tuple(source.shape)} on the device")
            return func(source.memory.clone(), *args[1:], **kwargs)
        if not to_gpu:
            return func(*args, **kwargs)
        converted = source if dtype is None else source.to(dtype)
        result = DeviceTensor(torch.empty_like(converted))
        return result.copy_(converted, non_blocking=kwargs.get("non_blocking", False))


@dataclass(eq=False)
class _Read:
    """A copy to the device that may not have run yet, and what it must find."""

    pinned: Tensor
    content: Tensor


def share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def rubbish(dtype: torch.dtype) -> float:
    """Return what the host reads before a copy has arrived."""
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min


class EmulatedGPU:
    """What is in flight between the host and the device.

    Attributes:
        waits: how often the host waited for an event.
        strict: syncs are errors; they are not while weights are loaded.
    """

    current: EmulatedGPU

    def __init__(self) -> None:
        self.waits = 0
        self.strict = True
        self._pinned: list[torch.UntypedStorage] = []
        self._arrivals: list[Callable[[], Any]] = []  # of copies, in the order of the stream
        self._reads: list[_Read] = []
        self._n_arrived = 0
        self.recording: Any = None  # the `emulated_graphs.Recording` of a graph being captured

    def launch(
        self, func: Callable[..., Any], args: Any, kwargs: Any, *, mutates: bool = False
    ) -> Any:
        """Let the device compute; a graph that is being captured will compute it again."""
        result = func(*args, **kwargs)
        if self.recording is not None:
            self.recording.append(func, args, kwargs, result, mutates=mutates)
        return result

    def only_outside_of_graphs(self, what: str) -> None:
        """Raise CaptureError if a graph is being captured: it would not do this again."""
        if self.recording is not None:
            raise CaptureError(what)

    # Memory ------------------------------------------------------------------------------------

    def pin(self, tensor: Tensor) -> Tensor:
        self.only_outside_of_graphs("pinned memory")
        self._pinned.append(tensor.untyped_storage())
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in {s.data_ptr() for s in self._pinned}

    def copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Copy between the host and the device, or on it."""
        if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
            self.launch(Tensor.copy_, (target.memory, source.memory), {}, mutates=True)
            return target
        self.only_outside_of_graphs("a copy between the host and the device")
        host = source if isinstance(target, DeviceTensor) else target
        if host.dim() and not (non_blocking and self.is_pinned(host)):
            self.refuse(f"a copy of a tensor {tuple(host.shape)} from or to pageable memory")
        if isinstance(target, DeviceTensor):
            target.memory.copy_(source)
            read = _Read(source, source.clone())
            self._reads.append(read)
            self._enqueue(lambda: self._finish(read))
        else:
            # What the stream has read by then may be written over.
            for read in [read for read in self._reads if share_memory(read.pinned, target)]:
                self._finish(read)
            brought = source.memory.clone()
            target.fill_(rubbish(target.dtype))
            self._enqueue(lambda: target.copy_(brought))
        return target

    def _finish(self, read: _Read) -> None:
        if read in self._reads:
            same = torch.equal(read.pinned, read.content)
            assert same, "pinned memory changed before its copy to the device had run"
            self._reads.remove(read)

    def _enqueue(self, arrive: Callable[[], Any]) -> None:
        if self.strict:
            self._arrivals.append(arrive)
        else:
            arrive()

    # Time --------------------------------------------------------------------------------------

    @property
    def enqueued(self) -> int:
        """Copies that were enqueued so far."""
        return self._n_arrived + len(self._arrivals)

    def arrive(self, n: int) -> None:
        """Let the first `n` copies of all arrive."""
        while self._n_arrived < n:
            self._arrivals.pop(0)()
            self._n_arrived += 1

    # Rules -------------------------------------------------------------------------------------

    def refuse(self, what: str) -> None:
        if self.strict:
            raise HostSyncError(what)

    def check(self, func: Any, args: Sequence[Any]) -> None:
        """Refuse operations that ask the device, or whose tensors are on two devices."""
        if func in _ASK_THE_DEVICE:
            self.only_outside_of_graphs(str(func))
            self.refuse(str(func))

        def one(value: Any) -> None:
            if isinstance(value, DeviceTensor) and value.dtype == torch.bool and func in _INDEX:
                self.refuse(f"{func} by a mask, whose number of elements decides the shape")
            # Numbers may stay on the host; torch passes them on as arguments of the launch.
            if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) and value.dim():
                raise HostSyncError(f"{func} takes a tensor {tuple(value.shape)} from the host")

        tree_map(one, list(args))

    @contextmanager
    def lenient(self) -> Iterator[None]:
        """Let the host wait: while weights are loaded, say."""
        self.strict = False
        try:
            yield
        finally:
            self.strict = True


class CaptureError(AssertionError):
    """A step did what a graph cannot repeat."""


class Event:
    """A point in the stream; copies before it arrive when it is waited for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._n = 0

    def record(self, *_: Any) -> None:
        EmulatedGPU.current.only_outside_of_graphs("an event that the host waits for")
        self._n = EmulatedGPU.current.enqueued

    def synchronize(self) -> None:
        EmulatedGPU.current.waits += 1
        EmulatedGPU.current.arrive(self._n)


class EmulatedBackend:
    """Plain torch behind the kernels' interface, on the memory of device tensors.

    The kernels themselves are not what is tried, so how the reference computes is its own affair.
    """

    def __init__(self, behind: Backend) -> None:
        self._behind = behind

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._behind, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():
                given = [_unwrapped(value) for value in args]
                named = {k: _unwrapped(v) for k, v in kwargs.items()}
                return _on_device(EmulatedGPU.current.launch(method, given, named))

        return call

    def pack_weight(self, weight: Tensor) -> Any:
        return weight

    def kv_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self._behind.kv_dtype(dtype)


def _unwrapped(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _unwrapped(getattr(value, f.name)) for f in fields(value)})
    return _memory(value)


@contextmanager
def emulated_gpu(monkeypatch: pytest.MonkeyPatch, *, backend: Any = None) -> Iterator[EmulatedGPU]:
    """Be a machine with a GPU, on which every engine runs on `backend`; by default plain torch."""
    gpu = EmulatedGPU.current = EmulatedGPU()
    backend = EmulatedBackend(kernels.backend("torch")) if backend is None else backend
    with monkeypatch.context() as patch, _Moves():
        # The engine leaves out what a caller has set of torch, but this is no caller's.
        patch.setattr(ambient, "without_modes", nullcontext)
        # A tensor of a wrapped kind that was made outside of inference mode has no views in it.
        patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())
        patch.setattr(kernels, "backend", lambda impl, **options: backend)
        # It has no table of launches: they are the defaults.
        patch.setattr(schedules, "_table_of", lambda device: None)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "default_stream", lambda device=None: None)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: None)
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 2**31))
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: _PROPERTIES)
        yield gpu
