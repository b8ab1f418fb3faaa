"""Benchmarks, run from the repository's root: `python -m bench.kernels` and so on."""
