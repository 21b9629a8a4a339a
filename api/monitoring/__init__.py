"""Health checks and queue metrics."""
