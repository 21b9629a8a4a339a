"""The Celery application. `celery -A workers.app flower` uses it; a worker is started by `python -m workers`."""

from __future__ import annotations

import os

from celery import Celery

from shared.queue import celery_app
from workers.tasks import register

app: Celery = celery_app(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
register(app)
