"""Budgets and rate limits, and what is left of them."""
