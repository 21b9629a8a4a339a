"""Benchmarks: print measurements next to their goals. Not run as tests. `python -m benchmarks --help`."""
