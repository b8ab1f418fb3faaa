"""Timing, results and the engines under test."""
