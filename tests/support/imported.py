"""The modules that `tests.support.forked` imports before it forks."""

import celery.bin.worker
import celery.concurrency.thread
import uvicorn

import api.app
import migrations
import workers.consumer.pool
import workers.consumer.signals
import workers.metrics_server
import workers.runtime
from tests.support.fork_server import freeze

__all__ = ["api", "celery", "migrations", "uvicorn", "workers"]

freeze()
