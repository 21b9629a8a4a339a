"""Celery's side of a worker: pool, task, transport, signals."""
