"""Attempts of jobs on an engine."""
