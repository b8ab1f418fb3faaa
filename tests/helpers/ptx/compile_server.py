"""Compiles launches for the tests; a process of its own, because they may run Triton's interpreter.

Each request on the standard input is a pickle of a kernel's module and name and a launch's
arguments, whose tensors have no memory; each answer on the standard output is one of the PTX, the
bytes of shared memory, the names of the arguments that the code reads, and the boxes that it copies
by descriptors.
"""

from __future__ import annotations

import importlib
import pickle
import sys

from bark_fast.kernels import aot

TARGET = 90

Answer = tuple[str, int, list[str], list[dict]]


def compiled(module: str, name: str, args: tuple, kwargs: dict, known: dict[str, Answer]) -> Answer:
    kernel = getattr(importlib.import_module(module), name)
    launches: list[aot.Launch] = []
    with aot.recording(launches):
        kernel[(1,)](*args, **kwargs)
    (launch,) = launches
    if launch.key not in known:
        code = aot.build(launch, TARGET)
        names = [name for name, kind in launch.signature.items() if kind != "constexpr"]
        boxes = code.metadata.tensordesc_meta or []
        known[launch.key] = code.asm["ptx"], code.metadata.shared, names, boxes
    return known[launch.key]


def main() -> None:
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # what a compiler prints is no answer
    known: dict[str, Answer] = {}
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(compiled(*request, known), out)
        out.flush()


if __name__ == "__main__":
    main()
