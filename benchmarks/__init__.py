"""Benchmarks: they print figures beside goals, and are never tests. `python -m benchmarks --help`."""
