"""Compiles launches in another process and keeps what it made of them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from helpers.ptx.parser import Program, parse


@dataclass(frozen=True)
class Code:
    """A kernel as it was compiled for one launch.

    Attributes:
        shared_size: bytes of shared memory of one program.
        names: the kernel's arguments that the code has parameters for.
        boxes: of each descriptor among them what a copy takes: "block_size" and "swizzle".
    """

    ptx: str
    program: Program
    shared_size: int
    names: list[str]
    boxes: list[dict[str, Any]]

    def lines_of(self, *words: str) -> list[int]:
        """Return the lines of the instructions whose opcode begins with these words."""
        found = self.program.instructions
        return [i.line for i in found if i.words[: len(words)] == words]

    def without(self, line: int) -> Code:
        """Return the code without what is on one line, as faults number them."""
        lines = self.ptx.split("\n")
        lines[line - 1] = ""
        return self.with_ptx("\n".join(lines))

    def with_ptx(self, ptx: str) -> Code:
        return replace(self, ptx=ptx, program=parse(ptx))


class Compiler:
    """A process that compiles, started at the first launch."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[bytes, Code] = {}
        self._programs: dict[str, Program] = {}

    def compile(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Code:
        """Return the code of a launch of `kernel`, which may be Triton's interpreter's."""
        function = getattr(kernel, "fn", kernel)
        request = pickle.dumps(
            (
                function.__module__,
                function.__name__,
                tuple(map(_without_memory, args)),
                {name: _without_memory(value) for name, value in kwargs.items()},
            )
        )
        if request not in self._known:
            ptx, shared_size, names, boxes = self._ask(request)
            if ptx not in self._programs:
                self._programs[ptx] = parse(ptx)
            self._known[request] = Code(ptx, self._programs[ptx], shared_size, names, boxes)
        return self._known[request]

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()

    def _ask(self, request: bytes) -> tuple[str, int, list[str], list[dict[str, Any]]]:
        if self._process is None:
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            self._process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("compile_server.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request)
        self._process.stdin.flush()
        answer: tuple[str, int, list[str], list[dict[str, Any]]] = pickle.load(self._process.stdout)
        return answer


def _without_memory(value: Any) -> Any:
    """Return a stand-in of a tensor: Triton reads its type, and a descriptor's block."""
    if isinstance(value, TensorDescriptor):
        return replace(value, base=_without_memory(value.base))
    return torch.empty((), dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value
