"""Batches: files of requests, executed at the lowest priority."""
