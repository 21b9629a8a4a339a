"""Operators' view of budgets."""
