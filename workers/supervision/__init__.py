"""Keeps a worker healthy: lease, engine restarts, redelivery, cancellation, watchdog."""
