"""Measures how much of what is to be redacted is found, and how much else is, on generated texts."""
