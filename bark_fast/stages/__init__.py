"""Bark's four stages: each one's token rules as pure functions, and one step of a batch."""
