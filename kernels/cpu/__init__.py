"""The kernels of CPUs: oneDNN through torch, and C for AVX2 and AVX-512."""
