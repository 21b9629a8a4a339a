"""One line per event: time, level, logger, message, and `key=value` fields."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str) -> None:
    """Send every logger's lines to stderr, as `2026-01-01T00:00:00 INFO api.app message key=value`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # Celery's two lines for each task; a job's own say more.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
