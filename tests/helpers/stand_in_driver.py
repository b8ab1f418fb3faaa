"""A Triton driver without a GPU: launches go through Triton up to the device, and are counted.

Specialisation is Triton's own, so what would be compiled, and when, is what it would be. Nothing is
compiled, and no kernel runs. Must be imported where Triton's interpreter is off.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


@dataclass
class LaunchLog:
    """What went to the device.

    Attributes:
        compiled: the name of each kernel that had to be compiled, with what it was specialised on.
        launches: how often each kernel was launched with each grid.
        seconds: that Triton took for the launches, up to the driver.
    """

    compiled: list[tuple[str, str]] = field(default_factory=list)
    launches: Counter[tuple[str, tuple[int, int, int]]] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def n_launches(self) -> int:
        return self.launches.total()

    def clear(self) -> None:
        """Forget the launches; what is compiled stays so."""
        self.launches.clear()
        self.seconds = 0.0


class _Kernel:
    """A compiled kernel, for Triton's launcher."""

    function = packed_metadata = None

    def __init__(self, name: str, log: LaunchLog) -> None:
        self._name, self._log = name, log

    def launch_metadata(self, *_: Any) -> None: ...

    def run(self, x: int, y: int, z: int, *_: Any) -> None:
        self._log.launches[self._name, (x, y, z)] += 1


class Driver:
    """What Triton asks a driver before a launch, for a device of that compute capability."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


@contextmanager
def stand_in_driver(capability: int = 90) -> Iterator[LaunchLog]:
    """Take the place of Triton's driver for a device of that compute capability."""
    log = LaunchLog()

    def compile_nothing(
        self: JITFunction[Any], key: Any, signature: Any, device: int, *_: Any
    ) -> Any:
        name = f"{self.__module__.rpartition('.')[2]}.{self.__name__}"
        log.compiled.append((name, str(key)))
        kernel = self.device_caches[device][0][key] = _Kernel(name, log)
        return kernel

    def timed_run(self: JITFunction[Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        kernel = run(self, *args, **kwargs)
        log.seconds += time.perf_counter() - start
        return kernel

    do_compile, run = JITFunction._do_compile, JITFunction.run
    JITFunction._do_compile, JITFunction.run = compile_nothing, timed_run
    driver.set_active(Driver(capability))
    try:
        yield log
    finally:
        JITFunction._do_compile, JITFunction.run = do_compile, run
        driver._active = None  # looked for again when it is needed
