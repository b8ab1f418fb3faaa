"""Checkpoints: where their files are, what their configuration says, and their weights."""
