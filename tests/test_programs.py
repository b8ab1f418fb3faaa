"""A missing program skips a test, or fails it where every program has to be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.programs import OPTION, needs_program

HOW = "apt-get install nothing"


def test_a_program_is_found(request: pytest.FixtureRequest) -> None:
    assert Path(needs_program(request, "sh", HOW)).name == "sh"


@pytest.mark.parametrize("required", [False, True])
def test_a_missing_program(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    monkeypatch.setattr(request.config.option, OPTION[2:].replace("-", "_"), required)
    outcome = pytest.fail.Exception if required else pytest.skip.Exception
    with pytest.raises(outcome, match=f"no-such-program: {HOW}"):
        needs_program(request, "no-such-program", HOW)
