"""Speak with a tiny checkpoint: the device gives the CPU's tokens in float32, and speaks in others.

    python -m bench smoke --device cuda --dtype bfloat16

The first thing to try on a new device. Exit status 1 if the tokens differ, or the audio is none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bark_fast import Bark, GenerationParams, Speech
from bench.harness.arguments import DTYPES, device_of
from bench.harness.checkpoint import checkpoint_for
from bench.harness.machine import describe_machine, describe_versions
from bench.harness.results import Case, Results, Spread

_TEXTS = ["Hello, my dog is cute.", "The rain sings."]
_VOICES = [None, "v2/en_speaker_0"]
_TOKENS = ("semantic_tokens", "coarse_tokens", "fine_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def run(arguments: argparse.Namespace) -> int:
    device = device_of(arguments)
    settings = {"device": str(device), "size": "tiny", "dtype": arguments.dtype}
    results = Results("smoke", describe_machine(device), describe_versions(), settings, {})
    with checkpoint_for(None, size="tiny", seed=0, dtype="float32") as folder:
        expected, _ = speak(folder, "cpu", "float32", impl="torch")
        ok = True
        for dtype in dict.fromkeys(("float32", arguments.dtype)):
            speeches, seconds = speak(folder, arguments.device, dtype)
            fault = find_fault(speeches, expected if dtype == "float32" else None)
            print(f"{device}, {dtype}: {fault or 'ok'} ({seconds:.1f} s)", flush=True)
            results.cases.append(Case(dtype, Spread.of([seconds]), {"fault": fault}))
            results.write(arguments.json)
            ok &= fault is None
    return 0 if ok else 1


def speak(
    folder: Path, device: str, dtype: str, impl: str = "auto"
) -> tuple[Sequence[Speech], float]:
    """Return what a new engine says, and the seconds from its start."""
    start = time.monotonic()
    bark = Bark.from_pretrained(
        folder, device=device, dtype=dtype, impl=impl, local_files_only=True
    )
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=12)
    return bark.generate(_TEXTS, voice=_VOICES, params=params), time.monotonic() - start


def find_fault(speeches: Sequence[Speech], expected: Sequence[Speech] | None) -> str | None:
    """Return what is wrong with what was said, None if nothing is."""
    for number, speech in enumerate(speeches):
        if not np.isfinite(speech.samples).all() or np.abs(speech.samples).max() == 0:
            return f"text {number}: the audio is silent, or no audio"
        for name in _TOKENS if expected is not None else ():
            got, wanted = (np.asarray(getattr(s[number], name)) for s in (speeches, expected or ()))
            if got.shape != wanted.shape:
                return f"text {number}: {name} have shape {got.shape}, on the CPU {wanted.shape}"
            if (got != wanted).any():
                share = float(np.mean(got == wanted))
                return f"text {number}: {share:.1%} of {name} are the CPU's"
    return None
