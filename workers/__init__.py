"""Workers: Celery processes with one engine each, which runs many jobs concurrently."""
