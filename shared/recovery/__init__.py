"""Recovery of jobs that no live worker owns."""
