"""Run the benchmarks, from the repository's root; `python -m bench COMMAND --help` tells more.

python -m bench --quick                everything once, at small sizes, in two minutes on two cores
python -m bench --gpu-all              everything worth doing on a GPU, in eight minutes
python -m bench --gpu-all --rehearse   every part of that on the CPU, at tiny sizes, in a minute
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.commands import (
    aims,
    bulk,
    compare,
    contention,
    end_to_end,
    kernels,
    load,
    machine,
    peers,
    plot,
    precision,
    predict,
    serve,
    smoke,
    stages,
    suite,
    throughput,
    tune,
)

_COMMANDS = {
    "machine": machine,
    "smoke": smoke,
    "kernels": kernels,
    "stages": stages,
    "throughput": throughput,
    "end_to_end": end_to_end,
    "serve": serve,
    "bulk": bulk,
    "contention": contention,
    "load": load,
    "precision": precision,
    "tune": tune,
    "compare": compare,
    "plot": plot,
    "predict": predict,
    "peers": peers,
    "aims": aims,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark, or all; return an exit status, which is not 0 if something went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_const", const="quick", dest="all")
    which.add_argument("--gpu-all", action="store_const", const="gpu_all", dest="all")
    parser.add_argument("--out", type=Path, help="folder for the results of --quick and --gpu-all")
    parser.add_argument("--rehearse", action="store_true", help="--gpu-all on a CPU, tiny")
    parser.add_argument("--budget-s", type=float, help="time for all of --quick or --gpu-all")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(argv)
    if arguments.all is not None and arguments.command is not None:
        parser.error("--quick and --gpu-all take no command")
    if arguments.rehearse and arguments.all != "gpu_all":
        parser.error("--rehearse goes with --gpu-all")
    if arguments.all is not None:
        return suite.run_all(
            arguments.all, arguments.out, arguments.budget_s, rehearse=arguments.rehearse
        )
    if arguments.command is None:
        parser.error(f"name a command ({', '.join(_COMMANDS)}), --quick or --gpu-all")
    return _COMMANDS[arguments.command].run(arguments)


if __name__ == "__main__":
    sys.exit(main())
