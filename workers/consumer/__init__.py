"""The Celery side of a worker: pool, task, transport, signals, and the event loop's thread."""
