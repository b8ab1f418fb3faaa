"""Executes the PTX that Triton makes of a kernel, with numpy, one program (CTA) after another.

    parser        text -> Program: instructions, labels, parameters
    values        PTX types as numpy dtypes; bfloat16; rounding and flushing
    memory        bytes with bounds, with what was never written, and with races
    table         from an opcode to what it does
    arithmetic    instructions that compute a register from registers
    instructions  moves, loads, stores, copies, barriers
    matrices      ldmatrix, stmatrix, mma.sync and wgmma
    tma           copies of tiles by descriptors, and mbarriers
    cta           all threads of one program in lock step, diverging and meeting again
    compiler      a process that compiles launches, because this one may run Triton's interpreter
    dependents    how a programmatic dependent begins
    device        runs Triton launches on CPU tensors: the kernels' Python side is the real one

The instructions follow NVIDIA's "Parallel Thread Execution ISA". Approximate instructions (`ex2`,
`div.full`) give the correctly rounded result, matrix products add in float64 and round once, and
`fma` is rounded twice, from float64: a device may differ in the last bit.

Faults, each of which names the line of PTX and of the kernel: an access outside a tensor or of
what was never written (NaN in an input marks it so), a store to what is not an output, a race,
data of a copy used before it arrived, a barrier that not all threads reach, and with
programmatic dependent launch an access to the previous kernel's results before they are there.
"""

from helpers.ptx.compiler import Code, Compiler
from helpers.ptx.cta import Cta, Place
from helpers.ptx.device import Device
from helpers.ptx.memory import Clock, GlobalMemory, Memory, PtxError
from helpers.ptx.parser import Program, parse

__all__ = [
    "Clock",
    "Code",
    "Compiler",
    "Cta",
    "Device",
    "GlobalMemory",
    "Memory",
    "Place",
    "Program",
    "PtxError",
    "parse",
]  # fmt: skip
