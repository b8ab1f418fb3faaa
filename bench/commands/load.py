"""Time a model's load in a fresh process, and its memory with one request.

    python -m bench load --size small --dtype bfloat16

The checkpoint is stored in --dtype and loaded in each of --precisions. A process that does not
count comes first, so that its files are in the page cache. The load's seconds do not contain the
import of torch, which stands beside them; other imports are in them. Memory is what the process had
at most, with everything that it had imported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from bark_fast.checkpoint.random import SIZES
from bench.harness.arguments import add_checkpoint, add_common, begin
from bench.harness.checkpoint import DEMO, checkpoint_for
from bench.harness.results import Case, Spread

PRECISIONS = ("float32", "bfloat16", "int8")

_PROGRAM = """
import json, sys, time
folder, device, precision, tokens = sys.argv[1:]
start = time.perf_counter()
import torch
imported = time.perf_counter()
from bark_fast import Bark, GenerationParams
bark = Bark.from_pretrained(folder, device=device, dtype=precision, local_files_only=True)
loaded = time.perf_counter()
bark.generate("Hello.", params=GenerationParams(seed=1, max_semantic_tokens=int(tokens)))
done = time.perf_counter()

from bench.harness.memory import PeakMemory, bytes_of_weights
print(json.dumps({
    "import_s": imported - start, "load_s": loaded - imported, "request_s": done - loaded,
    "peak_bytes": PeakMemory(bark.device).n_bytes(), "weight_bytes": bytes_of_weights(bark),
}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, sizes=(*SIZES, DEMO))
    add_checkpoint(parser)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--semantic-tokens", type=int, default=40, help="of the request, at most")


def run(arguments: argparse.Namespace) -> int:
    results, _ = begin("load", arguments)
    results.settings["load_average"] = os.getloadavg()[0]
    made_with = {"size": arguments.size, "seed": arguments.seed, "dtype": arguments.dtype}
    with checkpoint_for(arguments.checkpoint, **made_with) as folder:
        for precision in arguments.precisions:
            command = [sys.executable, "-c", _PROGRAM, str(folder), arguments.device, precision]
            command.append(str(arguments.semantic_tokens))
            found = [_one(command) for _ in range(arguments.runs + 1)][1:]
            results.cases.append(case_of(precision, found))
            print_case(results.cases[-1])
            results.write(arguments.json)
    return 0


def _one(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def case_of(precision: str, found: list[dict[str, Any]]) -> Case:
    """Summarise the processes of one precision."""

    def spread(key: str) -> Spread:
        return Spread.of([each[key] for each in found])

    return Case(
        precision,
        spread("load_s"),
        {
            "import_s": spread("import_s").as_dict(),
            "request_s": spread("request_s").as_dict(),
            "peak_bytes": spread("peak_bytes").as_dict(),
            "weight_bytes": found[0]["weight_bytes"],
        },
    )


def print_case(case: Case) -> None:
    seconds, peak = case.seconds, case.values["peak_bytes"]
    print(
        f"{case.name:<10} load {seconds.median:.2f} s ({seconds.min:.2f} to {seconds.max:.2f}), "
        f"import of torch {case.values['import_s']['median']:.2f} s, "
        f"peak {peak['median'] / 2**30:.2f} GiB (at most {peak['max'] / 2**30:.2f}), "
        f"weights {case.values['weight_bytes'] / 2**30:.2f} GiB",
        flush=True,
    )
