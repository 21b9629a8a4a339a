"""API keys, and the principal that a request acts for."""
