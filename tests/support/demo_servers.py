"""Servers with an empty database, for scripts that draw pictures or record data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from launcher.embedded import start_postgres, start_valkey
from tests.support.database import TEMPLATE, create_database, migrate, switch_database
from tests.support.stack import stack_template


class DemoServers(NamedTuple):
    """The addresses of PostgreSQL and Valkey, and a folder that is deleted with them."""

    database_url: str
    redis_url: str
    folder: Path


@contextmanager
def demo_servers() -> Iterator[DemoServers]:
    """Start PostgreSQL, with the tables of a new installation, and Valkey; stop them at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as name:
        folder = Path(name)
        postgres = start_postgres(folder / "postgres")
        valkey = start_valkey(folder / "valkey", persist=False)
        try:
            create_database(postgres.url, TEMPLATE)
            migrate(switch_database(postgres.url, TEMPLATE))
            create_database(postgres.url, "demo", template=stack_template(postgres.url))
            yield DemoServers(switch_database(postgres.url, "demo"), valkey.url, folder)
        finally:
            valkey.stop()
            postgres.stop()
