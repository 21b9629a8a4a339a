"""Health checks, and the queue as metrics."""
