"""Batches: a file of requests, run when there is room, and a file of their answers."""
