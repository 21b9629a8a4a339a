"""Limits of projects, keys, end users and models."""
