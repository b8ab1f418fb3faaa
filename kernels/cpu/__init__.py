"""The kernels of CPUs: oneDNN through torch, and C for AVX-512."""
