"""Measures which of vLLM's options pay for a model on this machine: `make tune MODEL=name` (docs/tuning.md)."""
