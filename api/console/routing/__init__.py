"""Routing and the response cache."""
