"""`python -m api.keys create|list|revoke|ensure`: bearer keys, on the database that DATABASE_URL names."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from sqlalchemy.exc import SQLAlchemyError

from api.keys.store import ApiKeyStore, generate_key
from api.settings import ApiSettings
from shared.config.settings import settings_or_exit
from shared.postgres.engine import connect


class KeySettings(ApiSettings):
    """Only the database is needed here."""

    redis_url: str = "redis://unused"


async def run(arguments: argparse.Namespace) -> int:
    engine = connect(settings_or_exit(KeySettings).database_url, pool_size=1)
    store = ApiKeyStore(engine)
    try:
        match arguments.action:
            case "create":
                key = generate_key()
                await store.create(arguments.name, key)
                print(key)
                print("This key is shown once; only its hash is stored.", file=sys.stderr)
            case "ensure":
                key = os.environ.get("HEADRACE_API_KEY", "")
                if len(key) < 16:
                    print("HEADRACE_API_KEY: must have at least 16 characters", file=sys.stderr)
                    return 2
                await store.create(arguments.name, key)
                if await store.find(key) is None:
                    print("HEADRACE_API_KEY: this key was revoked; set another", file=sys.stderr)
                    return 1
            case "list":
                for item in await store.all():
                    state = f"revoked {item.revoked_at:%Y-%m-%d %H:%M}" if item.revoked_at else "valid"
                    print(f"{item.prefix:<16} {item.created_at:%Y-%m-%d %H:%M}  {state:<26} {item.name}")
            case "revoke":
                if not await store.revoke(arguments.prefix):
                    print(f"no valid key has the prefix {arguments.prefix!r}", file=sys.stderr)
                    return 1
    finally:
        await engine.dispose()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("create", help="make a key and show it, once").add_argument("name")
    actions.add_parser("ensure", help="make sure that HEADRACE_API_KEY is a key").add_argument("name")
    actions.add_parser("list", help="list keys, by their public prefix")
    actions.add_parser("revoke", help="make a key invalid").add_argument("prefix")
    arguments = parser.parse_args()
    try:
        return asyncio.run(run(arguments))
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
