"""Benchmarks, run from the repository's root: `python -m bench --help`.

    __main__.py   parses the command line
    commands/     one module a command, and the suite of --quick and --gpu-all
    cases/        the work that is timed, and the least that it must cost
    harness/      clocks, the machine's limits, engines under test, workers, result files
    results/      the figures, a folder a machine

Imports point down this list and never up, and no command imports another.
"""
