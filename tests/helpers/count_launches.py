"""Run an engine on an emulated GPU and a stand-in for Triton's driver; print what was launched.

Run as a program, in a process without Triton's interpreter: `python -m helpers.count_launches DIR`
prints one JSON object about the checkpoint in DIR.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import pytest
import torch

from bark_fast import Bark, EngineOptions, GenerationParams, kernels
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.engine.build import load_engine
from bark_fast.engine.engine import Engine
from bark_fast.engine.warm_up import warm_up
from helpers.emulated_gpu import GPU, EmulatedBackend, emulated_gpu
from helpers.engine_fakes import FakeGraphs
from helpers.stand_in_driver import LaunchLog, stand_in_driver


class CountedBackend:
    """Triton's launches, which write nothing, and plain torch's draws, so that tokens come."""

    def __init__(self) -> None:
        self._triton = kernels.backend("triton", pdl=True)
        self._torch = EmulatedBackend(kernels.backend("torch"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._triton, name)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self._triton.sample(*args, **kwargs)
        return self._torch.sample(*args, **kwargs)


class LoggedRunner:
    """A stage that notes the launches of each of its calls."""

    def __init__(self, behind: Any, name: str, log: LaunchLog, notes: list[Any]) -> None:
        self._behind, self._name, self._log, self._notes = behind, name, log, notes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._behind, name)
        if name not in ("run", "prefill", "decode"):
            return method

        def call(tasks: Any, *rest: Any) -> Any:
            self._log.clear()
            result = method(tasks, *rest)
            counts: Counter[str] = Counter()
            for (kernel, _), n in self._log.launches.items():
                counts[kernel] += n
            about = {"stage": self._name, "call": name, "rows": len(tasks), "launches": counts}
            if name == "decode":
                about["steps"] = rest[1]
            self._notes.append(about)
            return result

        return call


def speak(engine: Engine, bark: Bark) -> None:
    """Many sentences of many lengths, in groups of many sizes."""
    for n in (1, 2, 3, 17):
        params = [
            GenerationParams(seed=i, max_semantic_tokens=5 + 11 * i, min_eos_p=0) for i in range(n)
        ]
        futures = [
            engine.submit(bark.request("Hello " * (i + 1), None, own))
            for i, own in enumerate(params)
        ]
        while engine.step():
            pass
        for future in futures:
            future.result(timeout=0)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    bark = Bark.from_pretrained(folder, device="cpu", impl="torch")
    source = Source.open(folder, revision=None, local_files_only=True)
    patch, notes = pytest.MonkeyPatch(), []
    with stand_in_driver() as log, emulated_gpu(patch, backend=CountedBackend()) as gpu:
        with gpu.lenient():
            engine = load_engine(
                TensorsInFiles(source), bark.engine.config, dtype=torch.bfloat16, device=GPU,
                impl="triton", options=EngineOptions(max_batch_size=20), graphs=FakeGraphs(),
            )  # fmt: skip
        warm_up(engine)
        n_compiled = len(log.compiled)
        for name in ("semantic", "coarse", "fine"):
            logged = LoggedRunner(getattr(engine.runner, name), name, log, notes)
            object.__setattr__(engine.runner, name, logged)
        speak(engine, bark)
        late = log.compiled[n_compiled:]
    print(json.dumps({"warmed": n_compiled, "late": late, "calls": notes}))


if __name__ == "__main__":
    main(sys.argv[1])
