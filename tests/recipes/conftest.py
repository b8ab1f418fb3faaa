from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.made_voice import Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        yield make(tmp_path_factory.mktemp("voice"), patch)
