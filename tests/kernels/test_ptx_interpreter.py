"""The interpreter of PTX itself: each instruction against numpy, and each fault that it finds.

`test_executed_ptx.py` runs the kernels with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from helpers.ptx import Clock, Cta, GlobalMemory, Memory, Place, PtxError, parse
from helpers.ptx.matrices import matrix_offsets
from helpers.ptx.memory import SharedMemory

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
) -> None:  # fmt: skip
    """Run a body in which %rd20, %rd21, ... point to the tensors; the last one is the output.

    %rd30, %rd31, ... point to a thread's own element of 8 bytes. `readable` tells which bytes of
    the first tensor were written.
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
    releases: dict[int, np.ndarray] = {}
    for number in range(ctas):
        Cta(
            program, arguments, Place((number, 0, 0), (ctas, 1, 1), number), memory,
            shared_size=shared, clock=clock, releases=releases,
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


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 2.0**-126, np.copysign(F32(0), x), x)


def exactly_fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (x.astype(np.longdouble) * y + z).astype(F32)


def shifted(x: np.ndarray, n: np.ndarray, by: str) -> np.ndarray:
    """Shift with Python's integers; a register's width or more shifts everything out."""
    mask = (1 << 8 * x.dtype.itemsize) - 1
    made = [int(a) << min(int(b), 64) if by == "left" else int(a) >> min(int(b), 64)
            for a, b in zip(x, n, strict=True)]  # fmt: skip
    return np.array([m & mask for m in made], np.uint64)


def field(x: np.ndarray, start: int, length: int) -> np.ndarray:
    made = []
    for a in x:
        bits = int(a) >> start & (1 << length) - 1
        negative = x.dtype.kind == "i" and bits >> (length - 1)
        made.append(bits - (1 << length) if negative else bits)
    return np.array(made, np.int64)


def toward_zero(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([abs(int(a)) // abs(int(b)) * (-1 if (a < 0) != (b < 0) else 1) if b else 0
                     for a, b in zip(x, y, strict=True)])  # fmt: skip


def remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([int(a) - int(b) * int(q) for a, b, q in
                     zip(x, y, toward_zero(x, y), strict=True)])  # fmt: skip


INTEGER = [
    (f"{name}.{kind}", [kind, kind], kind, function)
    for kind in ("s16", "s32", "u32", "s64", "u64")
    for name, function in (
        ("add", np.add), ("sub", np.subtract), ("min", np.minimum), ("max", np.maximum),
        ("mul.lo", np.multiply),
    )
] + [
    (f"{name}.b{width}", [f"b{width}"] * 2, f"b{width}", function)
    for width in (16, 32, 64)
    for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor))
] + [
    ("mul.wide.s16", ["s16", "s16"], "s32", lambda x, y: wide(x) * wide(y)),
    ("mul.wide.u32", ["u32", "u32"], "u64", lambda x, y: wide(x) * wide(y)),
    ("mul.wide.s32", ["s32", "s32"], "s64", lambda x, y: wide(x) * wide(y)),
    ("mul.hi.u32", ["u32", "u32"], "u32", lambda x, y: (wide(x) * wide(y)) >> np.uint64(32)),
    ("mad.lo.s32", ["s32"] * 3, "s32", lambda x, y, z: x * y + z),
    ("mad.lo.s64", ["s64"] * 3, "s64", lambda x, y, z: x * y + z),
    ("mad.wide.u32", ["u32", "u32", "u64"], "u64", lambda x, y, z: wide(x) * wide(y) + z),
    ("mad.wide.s32", ["s32", "s32", "s64"], "s64", lambda x, y, z: wide(x) * wide(y) + z),
    ("mad.wide.s16", ["s16", "s16", "s32"], "s32", lambda x, y, z: wide(x) * wide(y) + z),
    ("neg.s32", ["s32"], "s32", np.negative),
    ("not.b32", ["b32"], "b32", np.invert),
    ("not.pred", ["pred"], "pred", np.invert),
    ("and.pred", ["pred", "pred"], "pred", np.logical_and),
    ("or.pred", ["pred", "pred"], "pred", np.logical_or),
    ("popc.b32", ["b32"], "b32", lambda x: np.array([bin(v).count("1") for v in x.tolist()])),
    ("selp.b32", ["b32", "b32", "pred"], "b32", lambda x, y, p: np.where(p, x, y)),
    ("selp.b64", ["b64", "b64", "pred"], "b64", lambda x, y, p: np.where(p, x, y)),
]  # fmt: skip

COMPARISONS = [
    (f"setp.{name}.{kind}", [kind, kind], "pred", function)
    for kind in ("s32", "u32", "s64", "b32", "f32", "f16", "bf16")
    for name, function in (
        ("eq", np.equal), ("ne", lambda x, y: (x < y) | (x > y)), ("lt", np.less),
        ("le", np.less_equal), ("gt", np.greater), ("ge", np.greater_equal),
    )
] + [
    # With NaN, these are true.
    (f"setp.{name}u.f32", ["f32", "f32"], "pred", function)
    for name, function in (
        ("ne", np.not_equal), ("eq", lambda x, y: (x == y) | np.isnan(x + y)),
        ("ge", lambda x, y: (x >= y) | np.isnan(x) | np.isnan(y)),
        ("lt", lambda x, y: (x < y) | np.isnan(x) | np.isnan(y)),
        ("le", lambda x, y: (x <= y) | np.isnan(x) | np.isnan(y)),
        ("gt", lambda x, y: (x > y) | np.isnan(x) | np.isnan(y)),
    )
]  # fmt: skip

CONVERSIONS = [
    ("cvt.u64.u32", ["u32"], "u64", lambda x: x.astype(np.uint64)),
    ("cvt.s64.s32", ["s32"], "s64", lambda x: x.astype(np.int64)),
    ("cvt.s32.s16", ["s16"], "s32", lambda x: x.astype(np.int32)),
    ("cvt.u32.u64", ["u64"], "u32", lambda x: x.astype(np.uint32)),
    ("cvt.u16.u32", ["u32"], "u16", lambda x: x.astype(np.uint16)),
    ("cvt.u32.u16", ["u16"], "u32", lambda x: x.astype(np.uint32)),
]


@pytest.mark.parametrize(
    ("opcode", "sources", "result", "function"), INTEGER + COMPARISONS + CONVERSIONS,
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_exact_instructions(
    opcode: str, sources: list[str], result: str, function: Callable[..., np.ndarray]
) -> None:
    *operands, out = compute(opcode, sources, result)
    with np.errstate(all="ignore"):
        want = function(*map(as_type, operands, sources))
    got = as_type(out, "b32" if result == "pred" else result)
    assert (got == want.astype(got.dtype)).all()


@pytest.mark.parametrize("kind", ["s32", "u32", "s64"])
@pytest.mark.parametrize(("name", "function"), [("div", toward_zero), ("rem", remainder)])
def test_division_of_integers(name: str, function: Callable, kind: str) -> None:
    x, y, out = compute(f"{name}.{kind}", [kind, kind], kind)
    x, y = as_type(x, kind), as_type(y, kind)
    least = (kind[0] == "s") & (x == np.iinfo(x.dtype).min) & (y.astype(np.int64) == -1)
    defined = (y != 0) & ~least
    assert (as_type(out, kind)[defined] == function(x, y)[defined]).all()


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "s16", "s32", "u32", "s64", "u64"])
def test_shifts(kind: str) -> None:
    by = "right" if kind[0] != "b" else "left"
    x, n, out = compute(f"{'shr' if by == 'right' else 'shl'}.{kind}", [kind, "u32"], kind)
    want = shifted(as_type(x, kind), as_type(n, "u32"), by)
    assert (as_type(out, kind) == want.astype(as_type(out, kind).dtype)).all()


@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (4, 4), (31, 1), (0, 32), (7, 13)])
def test_bit_fields(kind: str, start: int, length: int) -> None:
    x, out = columns("b32", 32), np.zeros(32, np.uint64)
    run(
        f"\tld.global.b32 \t%r1, [%rd30];\n\tbfe.{kind} \t%r2, %r1, {start}, {length};\n"
        "\tst.global.b32 \t[%rd31], %r2;", x, out,
    )  # fmt: skip
    assert (as_type(out, "s32") == field(as_type(x, kind), start, length).astype(np.int32)).all()


FLOATS = [
    ("add.f32", 2, np.add), ("sub.f32", 2, np.subtract), ("mul.f32", 2, np.multiply),
    ("min.f32", 2, np.fmin), ("max.f32", 2, np.fmax), ("neg.f32", 1, np.negative),
    ("abs.ftz.f32", 1, lambda x: flushed(np.abs(x))), ("div.full.f32", 2, np.divide),
    ("sqrt.approx.ftz.f32", 1, lambda x: flushed(np.sqrt(flushed(x)))),
    ("fma.rn.f32", 3, exactly_fused),
    ("fma.rn.ftz.f32", 3, lambda *t: flushed(exactly_fused(*map(flushed, t)))),
    ("ex2.approx.ftz.f32", 1, lambda x: flushed(np.exp2(wide(flushed(x))).astype(F32))),
    ("lg2.approx.f32", 1, lambda x: np.log2(wide(x)).astype(F32)),
    ("rcp.approx.f32", 1, lambda x: F32(1) / x),
]  # fmt: skip


@pytest.mark.parametrize(("opcode", "count", "function"), FLOATS, ids=[f[0] for f in FLOATS])
def test_float_instructions(opcode: str, count: int, function: Callable[..., np.ndarray]) -> None:
    *operands, out = compute(opcode, ["f32"] * count, "f32")
    with np.errstate(all="ignore"):
        want = function(*(as_type(x, "f32") for x in operands)).astype(F32)
    got = as_type(out, "f32")
    assert np.array_equal(got, want, equal_nan=True)
    zero = want == 0
    assert (np.signbit(got) == np.signbit(want))[zero & ~np.isnan(want)].all()


def test_float16_and_bfloat16_are_rounded_to_nearest_even() -> None:
    import torch

    x, out = compute("cvt.rn.bf16.f32", ["f32"], "bf16", 256)
    got, want = as_type(out, "bf16"), torch.from_numpy(as_type(x, "f32")).bfloat16().float().numpy()
    assert np.array_equal(got, want, equal_nan=True)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F80FFFF] * 8, np.uint64)
    out = np.zeros(32, np.uint64)
    load, store = "\tld.global.b32 \t%r1, [%rd30];\n", "\tst.global.b16 \t[%rd31], %rs1;"
    run(f"{load}\tcvt.rn.bf16.f32 \t%rs1, %r1;\n{store}", ties, out)
    assert out[:4].tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F81]
    x, out = compute("cvt.rn.f16.f32", ["f32"], "f16", 256)
    with np.errstate(over="ignore"):
        want = as_type(x, "f32").astype(np.float16)
    assert np.array_equal(as_type(out, "f16"), want, equal_nan=True)
    for kind in ("f16", "bf16"):
        x, out = compute(f"cvt.f32.{kind}", [kind], "f32")
        want = as_type(x, kind).astype(F32)
        assert np.array_equal(as_type(out, "f32"), want, equal_nan=True)
    x, y, out = compute("cvt.rn.f16x2.f32", ["f32", "f32"], "b32")
    with np.errstate(over="ignore"):
        upper, lower = (as_type(t, "f32").astype(np.float16) for t in (x, y))
    halves = as_type(out, "b32").view(np.float16)
    assert np.array_equal(halves[::2], lower, equal_nan=True), "the second operand is below"
    assert np.array_equal(halves[1::2], upper, equal_nan=True)


def test_numbers_become_floats() -> None:
    for kind in ("s32", "u32"):
        x, out = compute(f"cvt.rn.f32.{kind}", [kind], "f32")
        assert (as_type(out, "f32") == as_type(x, kind).astype(F32)).all()


def test_moves_pack_and_unpack() -> None:
    x, out = columns("b64", 32), np.zeros(32, np.uint64)
    run(
        """
	ld.global.b64 	%rd1, [%rd30];
	mov.b64 	{%r1, %r2}, %rd1;
	mov.b32 	{%rs1, %rs2}, %r1;
	mov.b32 	%r3, {%rs2, %rs1};
	mov.b32 	{_, %rs3}, %r2;
	mov.b32 	%r4, {%rs3, %rs3};
	mov.b64 	%rd2, {%r4, %r3};
	st.global.b64 	[%rd31], %rd2;""", x, out,
    )  # fmt: skip
    parts, got = x.view(np.uint16).reshape(-1, 4), out.view(np.uint16).reshape(-1, 4)
    assert (got == parts[:, [3, 3, 1, 0]]).all()


LANE = np.arange(64) % 32
SHUFFLES = {
    "bfly.b32 \t%r2, %r1, 5, 31": LANE ^ 5,
    "idx.b32 \t%r2, %r1, 3, 31": np.full(64, 3),
    "up.b32 \t%r2, %r1, 2, 0": np.where(LANE >= 2, LANE - 2, LANE),
    "down.b32 \t%r2, %r1, 2, 31": np.where(LANE < 30, LANE + 2, LANE),
    # Segments of 8 lanes: the upper bits of the operand are the segment's.
    "bfly.b32 \t%r2, %r1, 4, 6175": LANE ^ 4,
    "down.b32 \t%r2, %r1, 3, 6175": np.where(LANE % 8 < 5, LANE + 3, LANE),
    "idx.b32 \t%r2, %r1, 2, 6175": LANE // 8 * 8 + 2,
}


@pytest.mark.parametrize("mode", SHUFFLES)
def test_shuffles(mode: str) -> None:
    x, out = columns("b32", 64), np.zeros(64, np.uint64)
    run(
        f"\tld.global.b32 \t%r1, [%rd30];\n\tshfl.sync.{mode}, -1;\n"
        "\tst.global.b32 \t[%rd31], %r2;", x, out, threads=64,
    )  # fmt: skip
    assert (out == x[np.arange(64) // 32 * 32 + SHUFFLES[mode]]).all()


@pytest.mark.parametrize(
    ("mode", "function"), [("add.s32", np.sum), ("max.u32", np.max), ("min.u32", np.min)]
)
def test_reductions_over_a_warp(mode: str, function: Callable[..., np.ndarray]) -> None:
    x, out = columns("b32", 64), np.zeros(64, np.uint64)
    run(
        f"\tld.global.b32 \t%r1, [%rd30];\n\tmov.b32 \t%r3, -1;\n"
        f"\tredux.sync.{mode} \t%r2, %r1, %r3;\n\tst.global.b32 \t[%rd31], %r2;",
        x, out, threads=64,
    )  # fmt: skip
    want = function(x.reshape(2, 32), axis=1) & np.uint64(0xFFFFFFFF)
    assert (out == np.repeat(want, 32)).all()


# Control ------------------------------------------------------------------------------------------


def test_threads_part_and_meet_again() -> None:
    """Thread t counts t % 5 + 1 rounds; those of even t leave early; all others meet at the end."""
    out = np.zeros(32, np.uint64)
    run(
        """
	rem.u32 	%r1, %r0, 5;
	mov.b32 	%r2, 0;
$L__BB0_1:
	add.s32 	%r2, %r2, 1;
	setp.le.u32 	%p1, %r2, %r1;
	@%p1 bra 	$L__BB0_1;
	and.b32 	%r3, %r0, 1;
	setp.eq.b32 	%p2, %r3, 0;
	@!%p2 bra 	$L__BB0_2;
	st.global.b32 	[%rd30], %r2;
	bra.uni 	$L__BB0_3;
$L__BB0_2:
	add.s32 	%r4, %r2, 100;
	st.global.b32 	[%rd30], %r4;
$L__BB0_3:
	bar.sync 	0;""", out,
    )  # fmt: skip
    t = np.arange(32)
    assert (out == t % 5 + 1 + 100 * (t % 2)).all()


def test_a_register_that_was_never_set_is_found() -> None:
    with pytest.raises(PtxError, match=r"made_up.py:7.*%r9 is read before it is written"):
        run("\tadd.s32 \t%r1, %r9, 1;")


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"PTX line \d+ .*: tanh.approx.f32"):
        run("\ttanh.approx.f32 \t%r1, %r0;")


# Memory -------------------------------------------------------------------------------------------

SHARED = "\tmov.b32 \t%r1, global_smem;\n\tshl.b32 \t%r2, %r0, 2;\n\tadd.s32 \t%r3, %r1, %r2;\n"
NEXT = "\txor.b32 \t%r4, %r3, 4;\n\tld.shared.b32 \t%r5, [%r4];\n\tst.global.b32 \t[%rd30], %r5;\n"


def test_shared_memory_and_its_barrier() -> None:
    out = np.zeros(64, np.uint64)
    body = f"{SHARED}\tst.shared.b32 \t[%r3], %r0;\n\tbar.sync \t0;\n{NEXT}"
    run(body, out, threads=64)
    assert (out == np.arange(64) ^ 1).all()
    with pytest.raises(
        PtxError, match=r"PTX line \d+ .*ld.shared.*read while another thread writes"
    ):
        run(body.replace("\tbar.sync \t0;\n", ""), out, threads=64)


def test_a_barrier_of_the_warp_orders_the_warp_alone() -> None:
    out = np.zeros(64, np.uint64)
    body = f"{SHARED}\tst.shared.b32 \t[%r3], %r0;\n\tbar.warp.sync \t-1;\n{NEXT}"
    run(body, out, threads=64)
    with pytest.raises(PtxError, match="while another thread writes"):
        run(body.replace("%r3, 4;", "%r3, 128;"), out, threads=64)


def test_a_write_after_others_read_is_a_race() -> None:
    out = np.zeros(64, np.uint64)
    body = f"{SHARED}\tst.shared.b32 \t[%r3], %r0;\n\tbar.sync \t0;\n{NEXT}"
    body += "\tbar.sync \t0;\n\tst.shared.b32 \t[%r3], %r0;\n"
    run(body, out, threads=64)
    at = body.rindex("\tbar.sync")
    with pytest.raises(PtxError, match="written while another thread accesses"):
        run(body[:at] + body[at + len("\tbar.sync \t0;\n") :], out, threads=64)


def test_two_values_at_one_place_are_found_and_equal_ones_are_not() -> None:
    out = np.zeros(32, np.uint64)
    run("\tmov.b32 \t%r1, 7;\n\tst.global.b32 \t[%rd20], %r1;", out)
    assert out[0] == 7
    with pytest.raises(PtxError, match="two values"):
        run("\tst.global.b32 \t[%rd20], %r0;", out)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.b64 \t%rd1, [%rd30+8]", "8 bytes at 256 of tensor 0, which has 256"),
        ("ld.global.b64 \t%rd1, [%rd30+-8]", "8 bytes at -8 of tensor 0"),
        ("st.global.b64 \t[%rd31+8], %rd30", "8 bytes at 256 of tensor 1"),
        ("st.global.b64 \t[%rd30], %rd30", "a store to tensor 0, which is no output"),
        ("ld.global.b64 \t%rd1, [%rd20+4]", "not a multiple"),
        ("ld.shared.b32 \t%r1, [global_smem]", "byte 0 of shared memory was never written"),
        ("st.shared.b32 \t[global_smem+1024], %r0", "4 bytes at 1024 of shared memory"),
        ("mov.b64 \t%rd1, 64;\n\tld.global.b64 \t%rd1, [%rd1]", "where there is no tensor"),
    ],
)
def test_accesses_out_of_bounds(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        run(f"\t{body};", np.zeros(32, np.uint64), np.zeros(32, np.uint64))


def test_what_was_never_written_must_not_be_read() -> None:
    x, out = np.zeros(32, np.uint64), np.zeros(32, np.uint64)
    readable = np.arange(256) < 8 * 31
    load = "\tld.global.b64 \t%rd1, [%rd30];"
    with pytest.raises(PtxError, match=r"byte 248 of tensor 0 was never written \(thread 31\)"):
        run(load, x, out, readable=readable)
    run(f"\tsetp.lt.u32 \t%p1, %r0, 31;\n\t@%p1 {load.strip()}", x, out, readable=readable)


def test_a_barrier_that_only_some_threads_reach() -> None:
    with pytest.raises(PtxError, match="a barrier that 8 of 32 threads reach"):
        run("\tsetp.lt.u32 \t%p1, %r0, 8;\n\t@%p1 bar.sync \t0;")


COPY = f"""{SHARED}	shl.b32 	%r6, %r0, 2;
	add.s32 	%r7, %r1, %r6;
	mad.wide.u32 	%rd1, %r0, 4, %rd20;
	setp.lt.u32 	%p1, %r0, 24;
	selp.b32 	%r8, 4, 0, %p1;
	cp.async.ca.shared.global [ %r7 + 0 ], [ %rd1 + 0 ], 0x4, %r8;
	cp.async.commit_group;
	cp.async.wait_group 0;
	bar.sync 	0;
{NEXT.replace("%rd30", "%rd31")}"""


def test_copies_arrive_when_they_are_waited_for() -> None:
    x, out = np.arange(24, dtype=np.uint32) + 100, np.zeros(32, np.uint64)
    run(COPY, x, out)  # the last 8 threads copy nothing: zeros, and no access outside x
    want = np.where(np.arange(32) < 24, np.arange(32) + 100, 0)[np.arange(32) ^ 1]
    assert (out == want).all()


@pytest.mark.parametrize(
    ("line", "by", "message"),
    [
        ("\tcp.async.wait_group 0;\n", "", "has not arrived yet"),
        ("\tcp.async.wait_group 0;\n", "\tcp.async.wait_group 1;\n", "has not arrived yet"),
        ("\tbar.sync \t0;\n", "", "while another thread writes"),
        ("\tcp.async.wait_group 0;\n", "\tst.shared.b32 \t[%r7], %r0;\n", "in flight"),
    ],
)
def test_copies_that_are_used_too_early(line: str, by: str, message: str) -> None:
    assert line in COPY
    with pytest.raises(PtxError, match=message):
        run(COPY.replace(line, by), np.zeros(24, np.uint32), np.zeros(32, np.uint64))


COUNTER = """
	mov.u32 	%r1, %ctaid.x;
	mad.wide.u32 	%rd1, %r1, 4, %rd20;
	setp.eq.b32 	%p1, %r0, 5;
	setp.eq.b32 	%p2, %r0, 9;
	@%p1 st.global.b32 	[%rd1+64], %r1;
	bar.sync 	0;
	mov.b32 	%r2, 1;
	@%p2 atom.global.gpu.acq_rel.add.u32 	%r3, [%rd20], %r2;
	bar.sync 	0;
	@%p1 ld.global.cg.b32 	%r4, [%rd20+64];
"""


def test_an_arrival_orders_programs() -> None:
    """What one program wrote may be read by another after both have met at a counter."""
    out = np.zeros(32, np.uint64)
    run(COUNTER, out, ctas=3)
    assert out.view(np.uint32)[0] == 3
    for line, by in (
        (".acq_rel", ".relaxed"),
        ("\tbar.sync \t0;\n\tmov", "\tmov"),
        ("\tbar.sync \t0;\n\t@%p1 ld", "\t@%p1 ld"),
    ):
        assert line in COUNTER
        with pytest.raises(PtxError, match="is read while another thread writes it"):
            run(COUNTER.replace(line, by), out, ctas=3)


def test_the_kernel_before_must_be_waited_for() -> None:
    x, out = np.zeros(32, np.uint64), np.zeros(32, np.uint64)
    early = "\tld.global.b64 \t%rd1, [%rd30];\n\tgriddepcontrol.wait ;\n"
    with pytest.raises(PtxError, match=r"access to tensor 0 before griddepcontrol\.wait"):
        run(early, x, out, dependent=True)
    run(early, x, out)
    late = "\tgriddepcontrol.wait ;\n\tld.global.b64 \t%rd1, [%rd30];\n"
    run(late, x, out, dependent=True)


# Matrices -----------------------------------------------------------------------------------------


def halves(*shape: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random values as their 16 bits and in float64."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(F32)
    bits = x.view(np.uint32) >> 16 if kind == "bf16" else x.astype(np.float16).view(np.uint16)
    bits = bits.astype(np.uint16)
    return bits, as_type(bits.astype(np.uint64), kind).astype(np.float64)


@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_matrices_go_to_shared_memory_and_back(transposed: str) -> None:
    """Four 8 x 8 matrices; each lane gives the address of a row, and gets two of the elements."""
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((32, 4), np.uint32)
    run(
        f"""
	shl.b32 	%r1, %r0, 4;
	mov.b32 	%r2, global_smem;
	add.s32 	%r3, %r2, %r1;
	mad.wide.u32 	%rd1, %r0, 16, %rd20;
	ld.global.v4.b32 	{{%r4, %r5, %r6, %r7}}, [%rd1];
	st.shared.v4.b32 	[%r3], {{%r4, %r5, %r6, %r7}};
	bar.sync 	0;
	ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 	{{%r8, %r9, %r10, %r11}}, [%r3];
	mad.wide.u32 	%rd2, %r0, 16, %rd21;
	st.global.v4.b32 	[%rd2], {{%r8, %r9, %r10, %r11}};
	bar.sync 	0;
	stmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 	[%r3], {{%r8, %r9, %r10, %r11}};
	bar.sync 	0;
	ld.shared.v4.b32 	{{%r12, %r13, %r14, %r15}}, [%r3];
	setp.ne.b32 	%p1, %r4, %r12;
	@%p1 st.global.b32 	[%rd21+1024], %r12;""", x, out,
    )  # fmt: skip
    lane = np.arange(32)
    got = out.view(np.uint16).reshape(32, 4, 2)
    for j in range(2):
        row, column = lane // 4, 2 * (lane % 4) + j
        want = x[:, column, row] if transposed else x[:, row, column]
        assert (got[:, :, j] == want.T).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_product_of_a_warp(kind: str) -> None:
    """The fragments are those of the ISA's figures for mma.m16n8k16."""
    a_bits, a = halves(2, 16, 16, kind=kind, seed=1)
    b_bits, b = halves(2, 16, 8, kind=kind, seed=2)
    c = np.random.default_rng(3).standard_normal((2, 16, 8)).astype(F32)
    fragments = np.zeros((64, 10), np.uint32)
    for thread in range(64):
        warp, g, t = thread // 32, thread % 32 // 4, thread % 4
        left = [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)]
        right = [(2 * t, g), (2 * t + 8, g)]
        sums = [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]
        for i, (row, k) in enumerate(left):
            fragments[thread, i] = a_bits[warp, row, k : k + 2].view(np.uint32)[0]
        for i, (k, n) in enumerate(right):
            pair = np.ascontiguousarray(b_bits[warp, k : k + 2, n])
            fragments[thread, 4 + i] = pair.view(np.uint32)[0]
        for i, place in enumerate(sums):
            fragments[thread, 6 + i] = c[warp][place].view(np.uint32)
    out = np.zeros((64, 4), F32)
    loads = "".join(f"\tld.global.b32 \t%r{10 + i}, [%rd1+{4 * i}];\n" for i in range(10))
    run(
        f"""	mad.wide.u32 	%rd1, %r0, 40, %rd20;
{loads}
	mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{ %r16, %r17, %r18, %r19 }}, \
{{ %r10, %r11, %r12, %r13 }}, {{ %r14, %r15 }}, {{ %r16, %r17, %r18, %r19 }};
	mad.wide.u32 	%rd2, %r0, 16, %rd21;
	st.global.v4.b32 	[%rd2], {{%r16, %r17, %r18, %r19}};""",
        fragments, out, threads=64,
    )  # fmt: skip
    want = a @ b + c
    for thread in range(64):
        warp, g, t = thread // 32, thread % 32 // 4, thread % 4
        rows = want[warp][[g, g, g + 8, g + 8], [2 * t, 2 * t + 1, 2 * t, 2 * t + 1]]
        assert np.allclose(out[thread], rows, rtol=1e-6, atol=1e-6)


SWIZZLE_BITS = {128: 1, 64: 2, 32: 3, 16: 0}


def test_layouts_of_matrices_in_shared_memory() -> None:
    """Places by hand: rows of a line's width in groups of 8, whose 16-byte units are exchanged."""
    for width, code in SWIZZLE_BITS.items():
        if width == 16:
            continue
        descriptor = (1024 >> 4) | 1 << 16 | (8 * width >> 4) << 32 | code << 62
        at = matrix_offsets(descriptor, 64, transposed=False)
        for row, k in [(0, 0), (1, 0), (1, 8), (7, 15), (9, 3), (63, 8)]:
            line = row * width  # groups of 8 rows follow one another
            unit = k // 8 ^ line // 128 % (width // 16)
            assert at[row, k] == 1024 + line + unit * 16 + k % 8 * 2, (width, row, k)
    # No swizzle: blocks of 8 rows x 16 bytes; next k 128 bytes on, next rows 256.
    at = matrix_offsets((1024 >> 4) | (128 >> 4) << 16 | (256 >> 4) << 32, 64, transposed=False)
    assert at[9, 11] == 1024 + 256 + 16 + 128 + 6
    # Transposed, 128 bytes are 64 rows of one k; k 8 is a group on, row 64 a leading offset.
    descriptor = (1024 >> 4) | (4096 >> 4) << 16 | (1024 >> 4) << 32 | 1 << 62
    at = matrix_offsets(descriptor, 128, transposed=True)
    assert at[10, 0] == 1024 + 16 + 4
    assert at[10, 3] == 1024 + 3 * 128 + ((1 ^ 3) * 16) + 4
    assert at[64, 8] == 1024 + 4096 + 1024


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_product_of_four_warps(kind: str) -> None:
    """D [64, 8] = A [64, 16] @ B, both in shared memory with lines of 32 bytes, exchanged."""
    a_bits, a = halves(64, 16, kind=kind, seed=1)
    b_bits, b = halves(8, 16, kind=kind, seed=2)
    stored = np.zeros((72, 16), np.uint16)
    for row, line in enumerate(np.concatenate([a_bits, b_bits])):
        for unit in range(2):
            to = unit ^ row // 4 % 2
            stored[row, 8 * to : 8 * to + 8] = line[8 * unit : 8 * unit + 8]
    body = f"""
	mov.b32 	%r1, global_smem;
	shl.b32 	%r2, %r0, 4;
	add.s32 	%r3, %r1, %r2;
	cvt.u64.u32 	%rd1, %r2;
	add.s64 	%rd2, %rd20, %rd1;
	ld.global.v4.b32 	{{%r4, %r5, %r6, %r7}}, [%rd2];
	st.shared.v4.b32 	[%r3], {{%r4, %r5, %r6, %r7}};
	setp.lt.u32 	%p1, %r0, 16;
	@%p1 ld.global.v4.b32 	{{%r4, %r5, %r6, %r7}}, [%rd2+2048];
	@%p1 st.shared.v4.b32 	[%r3+2048], {{%r4, %r5, %r6, %r7}};
	fence.proxy.async.shared::cta;
	bar.sync 	0;
	shr.u32 	%r8, %r1, 4;
	cvt.u64.u32 	%rd3, %r8;
	mov.b64 	%rd4, {3 << 62 | 16 << 32 | 1 << 16};
	or.b64 	%rd5, %rd3, %rd4;
	add.s64 	%rd6, %rd5, 128;
	wgmma.fence.sync.aligned;
	wgmma.mma_async.sync.aligned.m64n8k16.f32.{kind}.{kind} {{%r20,%r21,%r22,%r23}}, \
%rd5, %rd6, 0, 1, 1, 0, 0;
	wgmma.mma_async.sync.aligned.m64n8k16.f32.{kind}.{kind} {{%r20,%r21,%r22,%r23}}, \
%rd5, %rd6, 1, 1, 1, 0, 0;
	wgmma.commit_group.sync.aligned;
	wgmma.wait_group.sync.aligned 0;
	bar.sync 	0;
	st.shared.b32 	[%r3], %r0;
	mad.wide.u32 	%rd7, %r0, 16, %rd21;
	st.global.v4.b32 	[%rd7], {{%r20, %r21, %r22, %r23}};"""
    out = np.zeros((128, 4), F32)
    run(body, stored, out, threads=128, shared=4096)
    want = 2 * (a @ b.T)
    for thread in range(128):
        warp, g, t = thread // 32, thread % 32 // 4, thread % 4
        rows = want[16 * warp + np.array([g, g, g + 8, g + 8]), 2 * t + np.array([0, 1, 0, 1])]
        assert np.allclose(out[thread], rows, rtol=1e-6, atol=1e-6)
    for line, message in (
        ("\tfence.proxy.async.shared::cta;\n", "read by wgmma without a fence"),
        ("\twgmma.wait_group.sync.aligned 0;\n", "while a copy or product is in flight"),
    ):
        assert line in body
        with pytest.raises(PtxError, match=message):
            run(body.replace(line, ""), stored, out, threads=128, shared=4096)


def test_shared_memory_has_an_address_that_swizzles_need() -> None:
    assert SharedMemory.BASE % 1024 == 0
