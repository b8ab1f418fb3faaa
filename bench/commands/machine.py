"""Say what machine this is, with its versions and limits.

    python -m bench machine --device cuda

The limits are measured: how fast memory is copied and read, and matrices multiplied.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess

from bench.harness.arguments import add_common, begin, device_of
from bench.harness.machine import describe_machine, describe_versions

_ASKED = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    for about in (describe_machine(device_of(arguments)), describe_versions()):
        for name, value in about.items():
            print(f"{name}: {value}")
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv"], check=False)
    results, _ = begin("machine", arguments)
    results.write(arguments.json)
    return 0
