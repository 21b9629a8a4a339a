"""Delivers jobs' events to the readers of this API process."""
