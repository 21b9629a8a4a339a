"""What keeps a worker healthy: lease, engine restarts, redelivery, cancels, watchdog."""
