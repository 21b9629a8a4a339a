"""API keys and projects."""
