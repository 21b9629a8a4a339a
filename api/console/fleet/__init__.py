"""Models and workers."""
