"""Runs jobs on an engine."""
