"""Rate limits of projects, keys, end users and models."""
