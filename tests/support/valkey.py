"""Valkey servers that a test configures, breaks and promotes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from launcher.embedded import valkey_binary
from launcher.linux import die_with_parent
from tests.support.ports import free_port
from tests.support.waiting import eventually_sync


class ValkeyServer:
    """A server on 127.0.0.1 with options of its own. It ends with the thread that started it."""

    def __init__(self, folder: Path, **options: str) -> None:
        """`options` are settings of valkey.conf, with `_` for `-`."""
        port = free_port()
        settings = {"bind": "127.0.0.1", "port": str(port), "dir": str(folder), "save": "", **options}
        words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        self._start(folder, port, words)

    @classmethod
    def sentinel(cls, folder: Path, config: Path, port: int) -> ValkeyServer:
        """A sentinel with a configuration file, which it rewrites."""
        server = cls.__new__(cls)
        server._start(folder, port, [str(config), "--sentinel"])
        return server

    def _start(self, folder: Path, port: int, words: list[str]) -> None:
        self.port = port
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(valkey_binary()), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        self.admin: Any = redis.Redis(port=self.port, decode_responses=True, single_connection_client=True)
        eventually_sync(self._answers, "the server answers")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def config(self, **settings: object) -> None:
        for name, value in settings.items():
            self.admin.config_set(name.replace("_", "-"), str(value))

    def follow(self, primary: ValkeyServer) -> None:
        """Become a replica, and wait until it has the primary's data."""
        self.admin.replicaof("127.0.0.1", primary.port)

        def synced() -> bool:
            replication: dict[str, Any] = self.admin.info("replication")
            return bool(replication["role"] == "slave" and replication["master_link_status"] == "up")

        eventually_sync(synced, "the replica is in sync")

    def promote(self) -> None:
        self.admin.replicaof("NO", "ONE")

    @contextlib.contextmanager
    def with_another_password(self) -> Iterator[None]:
        """Have all clients log in again, with a password that they do not know."""
        self.config(requirepass="rotated")
        self.admin.execute_command("AUTH", "rotated")
        for kind in ("normal", "pubsub"):
            self.admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        try:
            yield
        finally:
            self.admin.execute_command("AUTH", "rotated")
            self.config(requirepass="")

    @contextlib.contextmanager
    def failing_to_save(self) -> Iterator[None]:
        """Have the last snapshot fail, which makes the server refuse all writes (MISCONF)."""
        self.config(save="3600 1", rdb_key_save_delay=1_000_000)
        self.admin.set("unsaved", "x")
        self.admin.bgsave()
        for child in psutil.Process(self.process.pid).children():
            child.kill()
        eventually_sync(lambda: self._last_save() == "err", "the snapshot has failed")
        try:
            yield
        finally:
            self.config(rdb_key_save_delay=0)
            self.admin.bgsave()
            eventually_sync(lambda: self._last_save() == "ok", "a snapshot has succeeded")
            self.config(save="")

    @contextlib.contextmanager
    def running_a_script(self) -> Iterator[None]:
        """Run a script that does not end, which makes the server refuse all commands (BUSY)."""
        self.config(busy_reply_threshold=50)
        client = redis.Redis(port=self.port, socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
        with contextlib.closing(client), contextlib.suppress(redis.exceptions.TimeoutError):
            client.eval("while true do end", 0)
        try:
            yield
        finally:
            self.admin.script_kill()

    def stop(self) -> None:
        self.admin.close()
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the server has exited"
        try:
            return bool(self.admin.ping())
        except redis.exceptions.ConnectionError:
            return False

    def _last_save(self) -> str:
        return str(self.admin.info("persistence")["rdb_last_bgsave_status"])
