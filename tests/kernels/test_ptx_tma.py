"""The interpreter's copies by descriptors, mbarriers, and threads that wait at barriers apart."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.ptx import PtxError
from helpers.ptx.made_up import run

ROWS, COLUMNS, BOX_ROWS = 6, 72, 8
AT_ROW, AT_COLUMN = 2, 16

COPY = """
	mov.b32 	%r1, global_smem;
	add.s32 	%r2, %r1, 4096;
	elect.sync 	%r3|%p1, -1;
	@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;
	bar.sync 	0;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {bytes};
	mov.b64 	%rd1, 0;
	mov.b32 	%r4, {column};
	mov.b32 	%r5, {row};
	@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], \
[%rd1, {{%r4, %r5}}], [%r2];
	mov.b32 	%r6, 0;
{{
	.reg .pred complete;
	waitLoop:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r2], %r6;
	@!complete bra.uni waitLoop;
}}
	shl.b32 	%r7, %r0, 5;
	add.s32 	%r8, %r1, %r7;
	mad.wide.u32 	%rd2, %r0, 32, %rd21;
	ld.shared.v4.b32 	{{%r10, %r11, %r12, %r13}}, [%r8];
	st.global.v4.b32 	[%rd2], {{%r10, %r11, %r12, %r13}};
	ld.shared.v4.b32 	{{%r10, %r11, %r12, %r13}}, [%r8+16];
	st.global.v4.b32 	[%rd2+16], {{%r10, %r11, %r12, %r13}};
	bar.sync 	0;
	@%p1 mbarrier.inval.shared::cta.b64 [%r2];"""


def copied(body: str, width: int = 64, swizzle: int = 3) -> np.ndarray:
    """Return what a box's place in shared memory holds after a copy, in units of 16 bytes."""
    matrix = np.arange(1, 1 + ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS)
    out = np.full((512,), 0xABAB, np.uint16)
    run(body, matrix, out, shared=8192, box=(BOX_ROWS, width), swizzle=swizzle)
    return out.reshape(-1, 8)


def body(*, row: int = AT_ROW, column: int = AT_COLUMN, n_bytes: int = BOX_ROWS * 128) -> str:
    return COPY.format(row=row, column=column, bytes=n_bytes)


@pytest.mark.parametrize(("row", "column"), [(2, 16), (0, 0), (5, 64), (6, 0), (0, 72)])
def test_a_box_arrives_swizzled_with_zeros_outside(row: int, column: int) -> None:
    units = copied(body(row=row, column=column))
    for r in range(BOX_ROWS):
        for unit in range(8):
            got = units[8 * r + (unit ^ r % 8)]
            for j in range(8):
                at = row + r, column + 8 * unit + j
                inside = at[0] < ROWS and at[1] < COLUMNS
                assert got[j] == (1 + at[0] * COLUMNS + at[1] if inside else 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("], 1024;", "], 1040;", "never ends: 0 have not arrived, 16 bytes"),
        ("@%p1 mbarrier.arrive", "@!%p1 mbarrier.arrive", "31 threads start what one should"),
        ("	@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;\n", "", "no mbarrier was made"),
        ("[%r2], 1;", "[%r2], 2;", "1 have not arrived"),
        ("[%r2], %r6;", "[%r2], %r20;", "has not arrived yet"),  # the phase before
    ],
)
def test_what_is_wrong_with_a_copy_is_found(old: str, new: str, message: str) -> None:
    text = body().replace("mov.b32 \t%r6, 0;", "mov.b32 \t%r6, 0;\n\tmov.b32 \t%r20, 1;")
    assert old in text
    with pytest.raises(PtxError, match=message):
        copied(text.replace(old, new))


def test_a_place_must_not_be_touched_while_a_copy_is_in_flight() -> None:
    wait = "\tmov.b32 \t%r6, 0;\n"
    for access, message in (
        ("st.shared.b32 \t[%r1], %r1", "in flight"),
        ("ld.shared.b32 \t%r9, [%r1]", "has not arrived yet"),
    ):
        with pytest.raises(PtxError, match=message):
            copied(body().replace(wait, f"{wait}\t@%p1 {access};\n"))


def test_a_copy_to_what_others_may_still_read_is_a_race() -> None:
    """The second copy needs a barrier behind the threads' loads of the first."""
    text = body()
    again = (
        "\t@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], "
        "[%rd1, {%r4, %r5}], [%r2];\n"
    )
    end = "\tbar.sync \t0;\n\t@%p1 mbarrier.inval"
    assert end in text
    with pytest.raises(PtxError, match="an mbarrier ends while a copy is in flight"):
        copied(text.replace(end, f"\tbar.sync \t0;\n{again}\t@%p1 mbarrier.inval"))
    with pytest.raises(PtxError, match="written while another thread accesses"):
        copied(text.replace(end, f"{again}{end}"))


def test_threads_wait_at_a_barrier_for_those_whose_way_leads_back_to_it() -> None:
    """The barrier stands in front of where half of the threads go before."""
    out = np.zeros(64, np.uint64)
    run(
        """
	mov.b32 	%r1, global_smem;
	shl.b32 	%r2, %r0, 2;
	add.s32 	%r3, %r1, %r2;
	bra.uni 	$L__BB0_2;
$L__BB0_1:
	st.shared.b32 	[%r3], %r4;
	bar.sync 	0;
	xor.b32 	%r5, %r3, 4;
	ld.shared.b32 	%r6, [%r5];
	st.global.b32 	[%rd30], %r6;
	ret;
$L__BB0_2:
	and.b32 	%r7, %r0, 1;
	setp.eq.b32 	%p1, %r7, 0;
	mov.b32 	%r4, 5;
	@%p1 bra 	$L__BB0_1;
	mov.b32 	%r4, 7;
	bra.uni 	$L__BB0_1;""",
        out, threads=64,
    )  # fmt: skip
    assert (out == np.where(np.arange(64) % 2 == 0, 7, 5)).all()
