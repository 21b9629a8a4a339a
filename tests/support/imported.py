"""What the process that `tests.support.forked` forks from imports."""

import signal

import celery.bin.worker
import celery.concurrency.thread
import uvicorn

import api.app
import migrations
import workers.consumer.pool
import workers.consumer.signals
import workers.metrics_server
import workers.runtime
from launcher.linux import die_with_parent

__all__ = ["api", "celery", "die", "migrations", "uvicorn", "workers"]

# Made before the fork; ends a process that is not a fork of the one that made it.
die = die_with_parent(signal.SIGKILL)
