"""The operations of `native.c` as structs, filled in by name and checked against the library's.

`check_layouts` compares kinds, members, their types and their order with what the compiled library
says of itself. A struct that was changed on one side alone is then an error when the library loads,
and no operation ever reads memory by a wrong layout.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from typing import Any, ClassVar

from torch import Tensor

WORD_BYTES, WORDS = 8, 40  # of an operation among others; WORDS as in native.c


class Operation(ctypes.Structure):
    """The base of the operations; `kinds` are the names that native.c has for this struct."""

    kinds: ClassVar[tuple[str, ...]] = ()


def _members(**types: Any) -> list[tuple[str, Any]]:
    return [("kind", c_int64), ("half", c_int64), *types.items()]


class EmbeddingSum(Operation):
    """See `Backend.embedding_sum`."""

    kinds = ("EMBEDDING_SUM",)
    _fields_: ClassVar = _members(
        y=c_void_p, ids=c_void_p, tables=c_void_p, positions=c_void_p, position_table=c_void_p,
        streams=c_int64, rows=c_int64, width=c_int64, ids_stride=c_int64, table_stride=c_int64,
    )  # fmt: skip


class Linear(Operation):
    """See `Backend.fused_linear`; with pages `Backend.qkv_to_pages`, with rows that overlap
    `CodecOps.convolution`."""

    kinds = ("LINEAR",)
    _fields_: ClassVar = _members(
        y=c_void_p, x=c_void_p, panels=c_void_p, scales=c_void_p, excess=c_void_p, bias=c_void_p,
        norm_weight=c_void_p, norm_bias=c_void_p, residual=c_void_p, eps=c_double, gelu=c_int64,
        elu=c_int64, rows=c_int64, n=c_int64, k=c_int64, x_stride=c_int64, k_pages=c_void_p,
        v_pages=c_void_p, slot_mapping=c_void_p, heads=c_int64, page_size=c_int64, d=c_int64,
    )  # fmt: skip


class Attention(Operation):
    """See `Backend.paged_attention` and `Backend.bidirectional_attention`."""

    kinds = ("PAGED_ATTENTION", "DECODE_ATTENTION", "BIDIRECTIONAL_ATTENTION")
    _fields_: ClassVar = _members(
        out=c_void_p, q=c_void_p, keys=c_void_p, values=c_void_p, q_stride=c_int64,
        tables=c_void_p, starts=c_void_p, lengths=c_void_p, batch=c_int64, max_pages=c_int64,
        page_size=c_int64, heads=c_int64, d=c_int64,
    )  # fmt: skip


class Sample(Operation):
    """See `Backend.sample`; what follows range_size is the `DecodeState`."""

    kinds = ("SAMPLE",)
    _fields_: ClassVar = _members(
        chosen=c_void_p, logits=c_void_p, rows=c_int64, columns=c_int64, temperature=c_void_p,
        top_p=c_void_p, top_k=c_void_p, seeds=c_void_p, positions=c_void_p, min_eos_p=c_void_p,
        min_new_tokens=c_void_p, suno_rules=c_void_p, stage=c_int64, n_ranges=c_int64,
        range_size=c_int64, finished=c_void_p, token_ids=c_void_p, state_positions=c_void_p,
        seq_lens=c_void_p, slot_mapping=c_void_p, num_generated=c_void_p, limits=c_void_p,
        tables=c_void_p, history=c_void_p, max_pages=c_int64, page_size=c_int64,
        history_width=c_int64, first_id=c_int64,
    )  # fmt: skip


class Pack(Operation):
    """A weight [n, k] into panels."""

    kinds = ("PACK",)
    _fields_: ClassVar = _members(
        panels=c_void_p, weight=c_void_p, scales=c_void_p, excess=c_void_p, n=c_int64, k=c_int64
    )


class Elu(Operation):
    """See `CodecOps.elu`."""

    kinds = ("ELU",)
    _fields_: ClassVar = _members(y=c_void_p, x=c_void_p, residual=c_void_p, n=c_int64)


class Lstm(Operation):
    """See `CodecOps.lstm`."""

    kinds = ("LSTM",)
    _fields_: ClassVar = _members(
        y=c_void_p, x=c_void_p, panels=c_void_p, steps=c_int64, width=c_int64
    )


_STRUCTS: tuple[type[Operation], ...] = (
    EmbeddingSum, Linear, Attention, Sample, Pack, Elu, Lstm
)  # fmt: skip
_KINDS = {kind: struct for struct in _STRUCTS for kind in struct.kinds}
KIND = {kind: number for number, kind in enumerate(_KINDS)}
"""The number of each kind, in native.c's order."""

_C_TYPES = {c_int64: "i64", c_double: "double"}


def as_program(operations: Sequence[Operation]) -> Any:
    """Return the operations WORDS apart, as an array that `run` of native.c takes."""
    program = (c_int64 * WORDS * len(operations))()
    for place, operation in zip(program, operations, strict=True):
        ctypes.memmove(place, ctypes.byref(operation), ctypes.sizeof(operation))
    return program


def pointer(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's numbers; None stays None, which is C's NULL."""
    return None if tensor is None else tensor.data_ptr()


def layouts() -> str:
    """Return the kinds in their order, a line each with the members of its struct in theirs."""
    lines = []
    for kind, struct in _KINDS.items():
        fields: list[tuple[str, Any]] = struct._fields_  # type: ignore[assignment]
        members = (f";{_C_TYPES.get(type_, '*')} {name}" for name, type_ in fields)
        lines.append(kind + "".join(members))
    return "\n".join(lines) + "\n"


def difference(compiled: str) -> str | None:
    """Return where these structs differ from `compiled`, the library's `layouts`; None if nowhere.

    All members have 64 bits on both sides, so equal names, kinds of types and order mean equal
    offsets.
    """
    # Of a pointer's type only that it is one matters here.
    simple = [
        ";".join(_simplified(member) for member in line.split(";"))
        for line in compiled.splitlines()
    ]
    for mine, its in zip(layouts().splitlines(), simple, strict=False):
        if mine != its:
            return f"Python has {mine!r}, the library {its!r}"
    if len(simple) != len(_KINDS):
        return f"Python has {len(_KINDS)} kinds of operations, the library {len(simple)}"
    too_long = [s.__name__ for s in _STRUCTS if ctypes.sizeof(s) > WORDS * WORD_BYTES]
    return f"{too_long[0]} is longer than {WORDS} words" if too_long else None


def _simplified(member: str) -> str:
    kind, _, name = member.rpartition(" ")
    return f"* {name}" if "*" in kind else member
