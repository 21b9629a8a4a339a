"""The modules that `tests.support.forked` imports before it forks."""

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

# Makes the kernel kill a forked process when the fork server exits. Created here because it stores the server's pid.
die = die_with_parent(signal.SIGKILL)
