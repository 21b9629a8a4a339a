"""A PostgreSQL and a Valkey for one test, which it can stop and start."""

from __future__ import annotations

from pathlib import Path

import redis

from launcher.embedded import Postgres, Valkey, start_postgres, start_valkey


class OwnServers:
    """Both run from the start and keep their URLs. Valkey loses its data at a restart, which is the worst case.

    Start them from the main thread: they exit with the thread that started them.
    """

    def __init__(self, folder: Path) -> None:
        self._postgres_folder, self._valkey_folder = folder / "postgres", folder / "valkey"
        self._postgres: Postgres | None = start_postgres(self._postgres_folder)
        self._valkey: Valkey | None = start_valkey(self._valkey_folder, persist=False)
        self.postgres_url, self.redis_url = self._postgres.url, self._valkey.url

    def start(self) -> None:
        """Start the servers that are stopped."""
        self.start_database()
        self.start_redis()

    def stop(self) -> None:
        self.stop_database()
        self.stop_redis()

    def start_database(self) -> None:
        if self._postgres is None:
            self._postgres = start_postgres(self._postgres_folder)
            assert self._postgres.url == self.postgres_url

    def stop_database(self) -> None:
        if self._postgres is not None:
            self._postgres.stop()
            self._postgres = None

    def start_redis(self) -> None:
        if self._valkey is None:
            self._valkey = start_valkey(self._valkey_folder, persist=False)
            assert self._valkey.url == self.redis_url

    def stop_redis(self) -> None:
        if self._valkey is not None:
            self._valkey.stop()
            self._valkey = None

    def flush_redis(self) -> None:
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()
