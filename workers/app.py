"""The Celery application, for Flower (`workers.flower`) and for `python -m workers`."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, bootsteps
from celery.exceptions import ImproperlyConfigured

from shared.redis.job_queue import celery_app
from workers.consumer.tasks import register


class RequireEngine(bootsteps.Step):  # type: ignore[misc]
    """Rejects `celery worker`, whose pools cannot run an engine: prefork's processes may not have children."""

    def __init__(self, worker: Any, **options: Any) -> None:
        if not hasattr(worker.app, "loop_thread"):
            raise ImproperlyConfigured("a worker needs its engine; start it with: python -m workers MODEL")
        super().__init__(worker, **options)


app: Celery = celery_app(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
app.steps["worker"].add(RequireEngine)
register(app)
