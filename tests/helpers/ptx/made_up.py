"""Kernels that tests write by hand, and values to run them on."""

from __future__ import annotations

import re

import numpy as np

from helpers.ptx.cta import Cta, Place
from helpers.ptx.memory import Clock, GlobalMemory, Memory
from helpers.ptx.parser import parse
from helpers.ptx.tma import TensorMap

F32 = np.float32
HEADER = """
.visible .entry kernel(
{parameters}
)
.reqntid {threads}
{{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<300>;
	.reg .b64 	%rd<40>;
	.loc	1 7 0                         // made_up.py:7:0
	mov.u32 	%r0, %tid.x;
{pointers}
{body}
	ret;
}}
	.file	1 "/somewhere/made_up.py"
"""


def run(
    body: str, *tensors: np.ndarray, threads: int = 32, ctas: int = 1, shared: int = 1024,
    readable: np.ndarray | None = None, dependent: bool = False,
    box: tuple[int, int] | None = None, swizzle: int = 0,
) -> None:  # fmt: skip
    """Run a body in which %rd20, %rd21, ... point to the tensors; the last one is the output.

    %rd30, %rd31, ... point to a thread's own element of 8 bytes. `readable` tells which bytes of
    the first tensor were written. With `box` descriptor 0 is of the first tensor, uint16 [M, K].
    """
    parameters = ",\n".join(f"\t.param .u64 kernel_param_{i}" for i in range(len(tensors)))
    pointers = "".join(
        f"\tld.param.b64 \t%rd{20 + i}, [kernel_param_{i}];\n"
        f"\tmad.wide.u32 \t%rd{30 + i}, %r0, 8, %rd{20 + i};\n"
        for i in range(len(tensors))
    )
    program = parse(
        HEADER.format(parameters=parameters, threads=threads, pointers=pointers, body=body)
    )
    clock, memory = Clock(ctas * threads), GlobalMemory()
    arguments = []
    for i, tensor in enumerate(tensors):
        data = tensor.reshape(-1).view(np.uint8)
        unwritten = (
            ~readable.reshape(-1, 2).all(axis=1) if i == 0 and readable is not None else None
        )
        last = i == len(tensors) - 1
        piece = Memory(
            f"tensor {i}", data, writable=last, unwritten=unwritten, clock=clock,
            dependent=dependent,
        )  # fmt: skip
        arguments.append(memory.add(piece))
        if i == 0 and box is not None:
            memory.tensor_maps[0] = TensorMap(
                piece, 0, tensor.shape, tensor.strides[0], box, swizzle
            )
    for number in range(ctas):
        Cta(
            program, arguments, Place((number, 0, 0), (ctas, 1, 1), number), memory,
            shared_size=shared, clock=clock,
        ).run()  # fmt: skip


def columns(kind: str, count: int = 64, seed: int = 0) -> np.ndarray:
    """Return uint64 whose low bits are values of this type, with all that is special in front."""
    generator = np.random.default_rng(seed)
    width = {"pred": 1}.get(kind) or int(re.sub(r"\D", "", kind))
    special = [0, 1, (1 << width) - 1, 1 << (width - 1), (1 << (width - 1)) - 1, 5, 31, 32]
    if kind == "f32":
        floats = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 1e-40], F32)
        special = floats.view(np.uint32).tolist()
        rest = (generator.standard_normal(count) * 10).astype(F32).view(np.uint32)
    elif kind == "f16":
        rest = generator.standard_normal(count).astype(np.float16).view(np.uint16)
    elif kind == "bf16":
        rest = generator.standard_normal(count).astype(F32).view(np.uint32) >> 16
    else:
        rest = generator.integers(0, 1 << 63, count, np.uint64)
    order = generator.permutation(8)
    values = np.array(special, np.uint64)[order].tolist() + rest.astype(np.uint64).tolist()
    return np.array(values[:count], np.uint64) & np.uint64((1 << width) - 1)


def as_type(bits: np.ndarray, kind: str) -> np.ndarray:
    """Return the low bits of uint64 as values, without the interpreter's help."""
    if kind == "pred":
        return bits != 0
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(F32)
    size = int(re.sub(r"\D", "", kind)) // 8
    dtype = f"{'f' if kind[0] == 'f' else 'i' if kind[0] == 's' else 'u'}{size}"
    return np.ascontiguousarray(bits.astype(f"u{size}")).view(dtype)


def register(kind: str, number: int) -> str:
    size = re.sub(r"\D", "", kind)
    return {"": "%p", "16": "%rs", "32": "%r", "64": "%rd"}[size] + str(number)


def compute(opcode: str, sources: list[str], result: str, count: int = 64) -> list[np.ndarray]:
    """Run one instruction on every thread; return its operands' bits and its result's."""
    operands = [columns(kind, count, seed=i + 1) for i, kind in enumerate(sources)]
    out = np.full(count, 0xABABABABABABABAB, np.uint64)
    body = ""
    names = [register(kind, i + 2) for i, kind in enumerate(sources)]
    for i, (kind, name) in enumerate(zip(sources, names, strict=True)):
        if kind == "pred":
            body += f"\tld.global.b32 \t%r{i + 2}, [%rd{30 + i}];\n"
            body += f"\tsetp.ne.b32 \t{name}, %r{i + 2}, 0;\n"
        else:
            width = re.sub(r"\D", "", kind)
            body += f"\tld.global.b{width} \t{name}, [%rd{30 + i}];\n"
    to = register(result, 1)
    body += f"\t{opcode} \t{', '.join([to, *names])};\n"
    if result == "pred":
        body += f"\tselp.b32 \t%r1, 1, 0, {to};\n"
        to, result = "%r1", "b32"
    width = re.sub(r"\D", "", result)
    body += f"\tst.global.b{width} \t[%rd{30 + len(sources)}], {to};\n"
    run(body, *operands, out, threads=count)
    return [*operands, out]
