"""`python -m api.request_log generate-key|rotate|status`: the master key of the request log.

`generate-key` prints a new one. `rotate` encrypts all data keys with HEADRACE_LOG_KEY that are encrypted with
HEADRACE_LOG_KEY_PREVIOUS; bodies are not touched. `status` shows which master keys are needed, and what is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log.data_keys import DataKeys
from api.request_log.encryption import DecryptionFailed, MasterKeys
from api.request_log.partitions import BODIES, LOG, Partitions
from api.request_log.store import MOST_COUNTED, RequestLogStore
from api.settings import DatabaseCommandSettings
from shared.config.settings import settings_or_exit
from shared.domain.master_key import generate_master_key
from shared.postgres.engine import connect


async def rotate(engine: AsyncEngine, settings: DatabaseCommandSettings, masters: MasterKeys) -> int:
    if not masters:
        print("HEADRACE_LOG_KEY: is required; `generate-key` prints a new key", file=sys.stderr)
        return 2
    try:
        done = await DataKeys(engine, masters).rotate()
    except DecryptionFailed as error:
        print(f"a data key was changed or damaged: {error}", file=sys.stderr)
        return 1
    print(f"{done.changed} data keys are now encrypted with HEADRACE_LOG_KEY ({masters.current})")
    if done.unreadable:
        print(
            f"{done.unreadable} data keys are encrypted with another master key; set it as HEADRACE_LOG_KEY_PREVIOUS"
            " and run `rotate` again (`status` shows its id)",
            file=sys.stderr,
        )
        return 1
    return 0


async def status(engine: AsyncEngine, settings: DatabaseCommandSettings, masters: MasterKeys) -> int:
    print(f"level           {settings.request_log_level.value}")
    keys = await DataKeys(engine, masters).count_by_master()
    for master, count in sorted(keys.items()):
        name = "HEADRACE_LOG_KEY" if master == masters.current else "HEADRACE_LOG_KEY_PREVIOUS"
        print(f"master key      {master}  {count} data keys  {name if masters.knows(master) else 'not configured'}")
    if not keys:
        print("master key      no data keys")
    partitions = Partitions(engine)
    for name, parent in (("rows", LOG), ("bodies", BODIES)):
        days = sorted(await partitions.days(parent))
        print(f"{name:<15} {f'{days[0]} to {days[-1]}' if days else 'no partitions'}")
    backlog = await RequestLogStore(engine).backlog(datetime.now(UTC) - timedelta(days=settings.log_retention_days))
    more = "more than " if backlog.count >= MOST_COUNTED else ""
    oldest = f", the first since {backlog.oldest:%Y-%m-%d %H:%M:%S %Z}" if backlog.oldest is not None else ""
    print(f"pending bodies  {more}{backlog.count}{oldest}")
    return 0 if all(map(masters.knows, keys)) else 1


ACTIONS = {"rotate": rotate, "status": status}


async def run(action: str) -> int:
    settings = settings_or_exit(DatabaseCommandSettings)
    masters = MasterKeys.of(settings.log_key, settings.log_key_previous)
    engine = connect(settings.database_url, pool_size=1)
    try:
        return await ACTIONS[action](engine, settings, masters)
    finally:
        await engine.dispose()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.request_log", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("generate-key", help="print a new master key")
    actions.add_parser("rotate", help="encrypt all data keys with HEADRACE_LOG_KEY")
    actions.add_parser("status", help="show the master keys that are needed, the days that are kept, and the backlog")
    parsed = parser.parse_args(arguments)
    if parsed.action == "generate-key":
        print(generate_master_key())
        return 0
    try:
        return asyncio.run(run(parsed.action))
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
