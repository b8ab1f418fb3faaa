"""Compare what an engine launches on a GPU with what `bark_fast.kernels.aot` compiles.

And with what `bench.cases.recording` records for predictions.

Run as a program, in a process without Triton's interpreter: `python -m helpers.engine_launches
SIZE` prints one JSON object with the launches that only one side knows. The engine has Bark's own
widths, vocabularies and pages, two layers a network, and runs on an emulated GPU.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from bark_fast import EngineOptions, kernels
from bark_fast.checkpoint.random import settings_for, stored_shapes
from bark_fast.checkpoint.reading import parse_config
from bark_fast.checkpoint.stored import TensorsInMemory
from bark_fast.engine.build import load_engine
from bark_fast.engine.engine import Engine
from bark_fast.engine.warm_up import warm_up
from bark_fast.kernels import aot
from bark_fast.request import Request
from bark_fast.stages.sampling import SamplingParams
from bench.cases import recording
from helpers.count_launches import CountedBackend
from helpers.emulated_gpu import GPU, emulated_gpu
from helpers.engine_fakes import FakeGraphs

DTYPE = torch.bfloat16
GROUPS = (1, 2, 16)  # requests at once


def two_layer_engine(size: str) -> Engine:
    """Build an engine whose networks are those of `size`, but two layers deep, because the last
    runs fewer tokens than the others; weights are ones."""
    settings, generation = settings_for(size)
    for stage in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        settings[stage]["num_layers"] = 2
    settings["codec_config"]["num_filters"] = 4  # of no concern to Triton
    tensors = {
        name: torch.ones((), dtype=DTYPE).expand(shape).contiguous()
        for name, shape in stored_shapes(settings).items()
    }
    return load_engine(
        TensorsInMemory(tensors, "memory"), parse_config(settings, generation),
        dtype=DTYPE, device=GPU, impl="triton", graphs=FakeGraphs(),
        # Every batch of the codec launches the same one kernel, so a few sizes are all of them.
        options=EngineOptions(max_batch_size=32, kv_cache_gib=0.25, max_codec_frames=512),
    )  # fmt: skip


def speak(engine: Engine) -> None:
    """Run requests of several lengths, in groups of several sizes."""
    sampling = SamplingParams(temperature=0.0, seed=0)
    one = Request(
        text="", text_ids=[0], voice=None, semantic=sampling, coarse=sampling, fine=sampling,
        max_semantic_tokens=4, seed=0, last_stage="codec",
    )  # fmt: skip
    for n in GROUPS:
        futures = [engine.submit(replace(one, max_semantic_tokens=4 + i)) for i in range(n)]
        while engine.step():
            pass
        for future in futures:
            future.result(timeout=0)


def engine_launches(size: str) -> tuple[dict[str, str], bool]:
    """Return the launches of an engine from warm-up to speech, by their keys with a name each, and
    whether its decode steps are programmatic dependents."""
    launches: list[aot.Launch] = []
    patch, backends = pytest.MonkeyPatch(), []
    real = kernels.backend

    def backend(impl: str, **options: Any) -> CountedBackend:
        backends.append(CountedBackend(real, **options))
        return backends[-1]

    with aot.recording(launches), emulated_gpu(patch) as gpu, patch.context() as inner:
        inner.setattr(kernels, "backend", backend)
        with gpu.lenient():
            engine = two_layer_engine(size)
        warm_up(engine)
        speak(engine)
    return {launch.key: launch.name for launch in launches}, backends[-1].pdl


def aot_launches(size: str, *, pdl: bool) -> dict[str, str]:
    """Return the launches that aot compiles, by their keys with a name each."""
    return {
        launch.key: f"{launch.name} ({case})"
        for case, run in aot.cases(aot.SHAPES[size], DTYPE, pdl=pdl)
        for launch in aot.record(run)
    }


def recorded_launches(size: str) -> dict[str, str]:
    """Return the launches that predictions are made of, by their keys with a name each."""
    stages = ("semantic", "coarse")
    steps = [
        *(recording.decode_step(size, s, n, keys=700) for s in stages for n in (1, 8, 16, 32)),
        *(recording.prefill(size, s, n, tokens=257) for s in stages for n in (1, 2, 16)),
        *(recording.prefill(size, s, 1, tokens=20) for s in stages),
        *(recording.fine_pass(size, n, codebook=k) for n in (1, 2, 8) for k in range(2, 8)),
    ]
    return {launch.key: launch.name for step in steps for op in step for launch in op.launches}


def main(size: str) -> None:
    torch.set_num_threads(1)
    launched, pdl = engine_launches(size)
    compiled, recorded = aot_launches(size, pdl=pdl), recorded_launches(size)

    def only(here: dict[str, str], there: dict[str, str]) -> list[str]:
        return [f"{name} {key}" for key, name in here.items() if key not in there]

    result = {
        "shared": len(launched.keys() & compiled.keys()),
        "launched, not compiled": only(launched, compiled),
        "compiled, not launched": only(compiled, launched),
        "launched, not recorded": only(launched, recorded),
        "recorded, not launched": only(recorded, launched),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
