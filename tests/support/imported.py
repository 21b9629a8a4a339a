"""What `tests.support.forked` imports before it forks."""

import celery.bin.worker
import celery.concurrency.thread
import uvicorn

import api.app
import migrations
import workers.lifecycle
import workers.metrics
import workers.pool
import workers.program

__all__ = ["api", "celery", "migrations", "uvicorn", "workers"]
