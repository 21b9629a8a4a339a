"""Signing in and out, and one-time links."""
