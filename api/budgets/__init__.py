"""Budgets: which of them apply to a job, and how much it could cost at most."""
