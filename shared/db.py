"""The connection to PostgreSQL."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def connect(url: str, *, pool_size: int = 10) -> AsyncEngine:
    """An engine whose pooled connections are checked before use, so that a restarted server costs no request.

    Waits at most 5 s for a connection, from the pool or from the server.
    """
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        hide_parameters=True,  # an error's text would quote prompts, into the logs
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
        connect_args={"timeout": 5, "command_timeout": 30, "server_settings": {"application_name": "headrace"}},
    )
