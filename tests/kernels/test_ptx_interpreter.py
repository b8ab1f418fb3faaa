"""The interpreter of PTX itself: arithmetic, moves and control, each against numpy.

`test_ptx_memory.py` has its memory and its matrices, `test_executed_ptx.py` runs kernels with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from helpers.ptx import PtxError
from helpers.ptx.made_up import as_type, columns, compute, run

F32 = np.float32


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

COMPARISONS += [
    (f"setp.{name}.{kind}", [kind, kind], "pred", function)
    for kind in ("f32", "f16", "bf16")
    for name, function in (
        ("nan", lambda x, y: np.isnan(x) | np.isnan(y)),
        ("num", lambda x, y: (x <= y) | (x > y)),
    )
]

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


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pairs_are_multiplied_one_by_one(kind: str) -> None:
    operands = compute(f"mul.{kind}x2", ["b32", "b32"], "b32")
    halves = [np.ascontiguousarray(as_type(t, "b32")).view(np.uint16) for t in operands]
    x, y, got = (as_type(t.astype(np.uint64), kind) for t in halves)
    with np.errstate(all="ignore"):
        product = torch.from_numpy(x.astype(F32) * y.astype(F32))
    want = product.to(torch.float16 if kind == "f16" else torch.bfloat16).float().numpy()
    assert np.array_equal(got.astype(F32), want, equal_nan=True)


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


def test_threads_that_are_ahead_wait_at_a_barrier() -> None:
    """Warp 0 goes a way behind the loop; warp 1 is in the next round before it returns."""
    out = np.zeros(64, np.uint64)
    run(
        """
	setp.lt.u32 	%p1, %r0, 32;
	mov.b32 	%r2, 0;
$L__BB0_1:
	bar.sync 	0;
	@%p1 bra 	$L__BB0_3;
$L__BB0_2:
	add.s32 	%r2, %r2, 1;
	setp.lt.u32 	%p2, %r2, 3;
	@%p2 bra 	$L__BB0_1;
	bra.uni 	$L__BB0_4;
$L__BB0_3:
	bra.uni 	$L__BB0_2;
$L__BB0_4:
	st.global.b32 	[%rd30], %r2;""", out, threads=64,
    )  # fmt: skip
    assert (out == 3).all()


def test_a_register_that_was_never_set_is_found() -> None:
    with pytest.raises(PtxError, match=r"made_up.py:7.*%r9 is read before it is written"):
        run("\tadd.s32 \t%r1, %r9, 1;")


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"PTX line \d+ .*: tanh.approx.f32"):
        run("\ttanh.approx.f32 \t%r1, %r0;")
