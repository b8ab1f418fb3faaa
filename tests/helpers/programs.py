"""Programs that are no Python packages, which some tests need."""

from __future__ import annotations

import shutil

import pytest

OPTION = "--require-programs"


def needs_program(request: pytest.FixtureRequest, name: str, how: str) -> str:
    """Return the path of a program.

    Without it the test is skipped, or with `--require-programs`, as in `.ci/run`, fails.

    Args:
        how: it is installed, for the reason that is shown.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"needs the program {name}: {how}"
    if request.config.getoption(OPTION):
        pytest.fail(reason, pytrace=False)
    pytest.skip(f"{reason} (with {OPTION} this is a failure)")
