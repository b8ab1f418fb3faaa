"""The interpreter's memory: every fault that it finds, races above all; and its matrices."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.ptx import PtxError
from helpers.ptx.made_up import as_type, run
from helpers.ptx.matrices import matrix_offsets
from helpers.ptx.memory import SharedMemory

F32 = np.float32

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
