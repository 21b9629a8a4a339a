"""Runs requests as predictions of Replicate."""
