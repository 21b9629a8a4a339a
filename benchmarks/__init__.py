"""Benchmarks: they print figures, and are never tests."""
