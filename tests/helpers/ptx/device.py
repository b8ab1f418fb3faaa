"""Runs the Triton kernels that a `with` block launches, on CPU tensors, from their PTX."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from helpers.ptx.compiler import Code, Compiler
from helpers.ptx.cta import Cta, Place
from helpers.ptx.memory import GRANULE, Clock, GlobalMemory, Memory
from helpers.ptx.tma import TensorMap

Index = tuple[int, int, int]


class Device:
    """Stands in for a GPU: `with Device(compiler): kernels.fused_linear(..., impl="triton")`.

    Tensors that are made by torch.empty inside the block are outputs: full of NaN at first, and
    what is still NaN must not be read. All others are inputs, unless they are in `writable`.

    Args:
        weights: tensors that no kernel writes, which a programmatic dependent may read at once.
        writable: tensors from outside that kernels write too.
        programs: tells the programs to run by their index in the grid; all by default.
        seed: of the order in which they run.
        races: look for races; it takes about as long again.
        edit: changes the compiled code before it runs.
    """

    def __init__(
        self, compiler: Compiler, *, weights: Iterable[Tensor] = (),
        writable: Iterable[Tensor] = (), programs: Callable[[Index], bool] = lambda index: True,
        seed: int = 0, races: bool = True, edit: Callable[[Code], Code] = lambda code: code,
    ) -> None:  # fmt: skip
        self._compiler, self._programs, self._edit = compiler, programs, edit
        self._weights = {_place(t) for t in weights}
        self._writable = {_place(t) for t in writable}
        self._made: list[Tensor] = []  # keeps their memory from being another tensor's
        self._random = random.Random(seed)
        self._races = races
        self._unwritten: dict[int, np.ndarray | None] = {}
        self._patch = pytest.MonkeyPatch()
        self.ran: list[tuple[Code, list[Index]]] = []

    def __enter__(self) -> Device:
        device = self

        def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            device._launch(self, args, (*grid, 1, 1)[:3], kwargs)

        real_empty = torch.empty

        def empty(*size: Any, **options: Any) -> Tensor:
            made = real_empty(*size, **options)
            if made.device.type != "meta":
                made.fill_(math.nan if made.dtype.is_floating_point else -77)
                device._made.append(made)
            return made

        self._patch.setattr(torch, "empty", empty)
        self._patch.setattr(torch, "empty_like", lambda t: empty(*t.shape, dtype=t.dtype))
        for kind in (InterpretedFunction, JITFunction):
            self._patch.setattr(kind, "run", run)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _launch(
        self, kernel: Any, args: tuple[Any, ...], grid: Index, kwargs: dict[str, Any]
    ) -> None:
        code = self._edit(self._compiler.compile(kernel, args, kwargs))
        chosen = [i for i in itertools.product(*map(range, grid)) if self._programs(i)]
        self._random.shuffle(chosen)
        clock = Clock(len(chosen) * code.program.threads) if self._races else None
        named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        memory, arguments = self._arguments({n: named[n] for n in code.names}, code.boxes, clock)
        for number, index in enumerate(chosen):
            Cta(
                code.program, arguments, Place(index, grid, number), memory,
                shared_size=code.shared_size, clock=clock,
            ).run()  # fmt: skip
        self.ran.append((code, chosen))

    def _arguments(
        self, given: dict[str, Any], boxes: list[dict[str, Any]], clock: Clock | None
    ) -> tuple[GlobalMemory, list[int]]:
        memory = GlobalMemory()
        places: dict[int, int] = {}
        bits: list[int] = []

        def address(name: str, tensor: Tensor) -> int:
            place = _place(tensor)
            if place not in places:
                places[place] = memory.add(self._memory(name, tensor, clock))
            return places[place] + tensor.storage_offset() * tensor.element_size()

        for name, value in given.items():
            if isinstance(value, Tensor):
                bits.append(address(name, value))
            elif isinstance(value, TensorDescriptor):
                at = np.array([address(name, value.base)])
                ((_, tensor, offsets),) = memory.parts(at)
                number = len(memory.tensor_maps)
                memory.tensor_maps[number] = TensorMap(
                    tensor, int(offsets[0]), tuple(value.shape), value.strides[0] * 2,
                    tuple(boxes[number]["block_size"]), boxes[number]["swizzle"],
                )  # fmt: skip
                # The code has parameters for the shape and the strides too.
                bits += [number, *value.shape, *value.strides]
            elif isinstance(value, float):
                bits.append(int(np.float32(value).view(np.uint32)))
            else:
                bits.append(int(value) & 0xFFFF_FFFF_FFFF_FFFF)
        return memory, bits

    def _memory(self, name: str, tensor: Tensor, clock: Clock | None) -> Memory:
        place = _place(tensor)
        made = any(_place(t) == place for t in self._made)
        writable = made or place in self._writable
        if writable or place not in self._unwritten:
            self._unwritten[place] = _unwritten(tensor, made)
        return Memory(
            name, _bytes(tensor), writable=writable, unwritten=self._unwritten[place], clock=clock,
            dependent=place not in self._weights,
        )  # fmt: skip


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> np.ndarray:
    """Return the memory that a tensor is in, as bytes."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


def _unwritten(tensor: Tensor, made: bool) -> np.ndarray | None:
    """Return where there is nothing to be read: NaN, and all of a new tensor of integers."""
    storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
    if tensor.dtype.is_floating_point:
        missing = storage.isnan().numpy()
    else:
        missing = np.full(len(storage), made)
    return np.repeat(missing, tensor.element_size() // GRANULE) if missing.any() else None
