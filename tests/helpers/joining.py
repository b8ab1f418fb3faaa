"""What a stream makes of its sentences' samples, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bark_fast import Speech


def joinable(speeches: Sequence[Speech], pause_s: float = 0.0) -> list[Speech]:
    """Return sentences as a stream of them yields them: faded over 5 ms where they meet."""
    parts = []
    for i, speech in enumerate(speeches):
        samples = speech.samples.copy()
        n = min(int(0.005 * speech.sample_rate_hz), len(samples) // 2)
        for j in range(n):
            if i > 0:
                samples[j] *= np.float32(j / n)
            if i < len(speeches) - 1:
                samples[-1 - j] *= np.float32(j / n)
        if i < len(speeches) - 1:
            samples = np.append(samples, np.zeros(int(pause_s * speech.sample_rate_hz)))
        parts.append(replace(speech, samples=samples.astype(np.float32)))
    return parts
