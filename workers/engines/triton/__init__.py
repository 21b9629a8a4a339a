"""Relays to a Triton server by the generate extension of its HTTP API."""
