"""Bark's networks: weights, and calls to kernels. No token rules, no policy."""
