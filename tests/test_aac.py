"""AAC, which needs a package of its own, at all its rates and without the package."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bark_fast import AudioWriter, InputError
from bark_fast.audio import save_audio
from bark_fast.encoders import _AAC_RATES_HZ
from helpers.decoding import AAC_FRAME, decode


def tone(n: int) -> np.ndarray:
    return (0.5 * np.sin(np.arange(n) / 20)).astype(np.float32)


@pytest.mark.parametrize("rate", _AAC_RATES_HZ)
def test_aac_at_all_its_rates(rate: int) -> None:
    samples = tone(rate)
    save_audio(file := io.BytesIO(), samples, rate, format="aac")
    heard, rate_heard = decode(file.getvalue())
    assert rate_heard == rate
    middle = slice(rate // 4, -rate // 4)
    assert np.corrcoef(heard[AAC_FRAME:][: len(samples)][middle], samples[middle])[0, 1] > 0.99


def test_aac_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"aac needs PyAV: pip install 'bark-fast\[aac\]'"):
        save_audio(tmp_path / "a.aac", tone(100), 24_000)
    with pytest.raises(InputError, match=r"pip install 'bark-fast\[aac\]'\), got 'aac'"):
        AudioWriter(io.BytesIO(), 24_000, format="aac")
    assert os.listdir(tmp_path) == []
