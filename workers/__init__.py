"""The workers: Celery processes, each with one engine that runs many jobs at once."""
