"""One request, text to samples, side by side with transformers' BarkModel in the same run.

    python -m bench.end_to_end --size small --semantic-tokens 100

Random weights, greedy, the same checkpoint, dtype and threads (but that bark-fast's codec is always
float32); outputs are checked equal (float32) before anything is timed. Runs alternate, and the
ratio is taken pair by pair, because the speed of a machine drifts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from bark_fast import Bark, GenerationParams
from bark_fast.checkpoint.random import create_checkpoint
from bench.machine import device_name

TEXT = "Hello, my dog is cute"


def main() -> None:
    """Measure, print, and with --json also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=["tiny", "small", "large"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--semantic-tokens", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = create_checkpoint(Path(folder) / "checkpoint", size=arguments.size)
        ours, theirs = build(checkpoint, arguments)
    first, second = ours(), theirs()  # warm-up, and the proof that both do the same work
    if arguments.dtype == "float32":
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-4)
    assert first.shape == second.shape, "both must make the same length"

    times: dict[str, list[float]] = {"bark-fast": [], "transformers": []}
    for _ in range(arguments.runs):
        for name, run in (("bark-fast", ours), ("transformers", theirs)):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    audio_s = len(first) / 24_000
    report = {
        "device": device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "size": arguments.size,
        "dtype": arguments.dtype,
        "semantic_tokens": arguments.semantic_tokens,
        "audio_s": audio_s,
        "seconds": times,
        "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
    }
    for name, seconds in times.items():
        print(f"{name:<13} {statistics.median(seconds):7.2f} s for {audio_s:.2f} s of audio")
    print("ratio         {min:.2f} .. {median:.2f} .. {max:.2f}".format(**report["ratio"]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def build(
    checkpoint: Path, arguments: argparse.Namespace
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Two functions that say TEXT and return the samples."""
    n, width = arguments.semantic_tokens, 256
    bark = Bark.from_pretrained(checkpoint, device=arguments.device, dtype=arguments.dtype)
    dtype = getattr(torch, arguments.dtype)
    model = transformers.BarkModel.from_pretrained(checkpoint, dtype=dtype).to(arguments.device)
    processor = transformers.BarkProcessor(transformers.AutoTokenizer.from_pretrained(checkpoint))
    inputs = processor(TEXT, max_length=width).to(arguments.device)
    params = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=n)

    def ours() -> np.ndarray:
        return bark.generate(TEXT, params=params).samples

    def theirs() -> np.ndarray:
        samples = model.generate(
            **inputs, do_sample=False, fine_temperature=None, semantic_max_new_tokens=n
        )
        return samples[0].float().cpu().numpy()

    return ours, theirs


if __name__ == "__main__":
    main()
