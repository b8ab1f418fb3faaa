"""What the code of a programmatic dependent must be like, whatever path it takes."""

from __future__ import annotations

from helpers.ptx.compiler import Code


def assert_starts_the_next_and_waits(code: Code, *, weights: bool = False) -> None:
    """Assert that every program lets the next kernel start at once, and waits for the one before.

    Args:
        weights: it asks for 32 KiB of weights before it waits.
    """
    (start,) = code.lines_of("griddepcontrol", "launch_dependents")
    (wait,) = code.lines_of("griddepcontrol", "wait")
    loads = code.lines_of("ld", "global") + code.lines_of("cp", "async")
    assert start < min([wait, *loads]), "the next kernel starts before anything is asked for"
    before = [i for i in code.program.instructions if i.line < wait]
    assert not any(i.words[0] in ("bra", "ret") for i in before), "every program waits"
    assert not any(i.words[:2] == ("st", "global") for i in before), "nothing is written before"
    early = sum(line < wait for line in loads)
    # 16 bytes each, for each of 256 threads.
    assert early >= 8 if weights else early == 0
