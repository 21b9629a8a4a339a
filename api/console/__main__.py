"""`python -m api.console link`: print a link that signs in to the console, once. Needs the database only."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from api.console.session_store import LINK_S, SessionStore, link_path
from api.keys.principal import Scope
from api.keys.store import ApiKeyStore, generate_key, parse_id
from api.settings import DatabaseCommandSettings
from shared.config.settings import settings_or_exit
from shared.postgres.engine import connect

KEY_NAME = "console"


async def link(arguments: argparse.Namespace) -> int:
    """Print a link of a key: of the given one, or of an operator's key that exists for this and is known to nobody."""
    database = connect(settings_or_exit(DatabaseCommandSettings).database_url, pool_size=1)
    try:
        store = SessionStore(database)
        key_id = arguments.key
        if arguments.own:
            valid = await ApiKeyStore(database).find(os.environ.get("HEADRACE_API_KEY", ""))
            if valid is None:
                print("HEADRACE_API_KEY: this is no valid key", file=sys.stderr)
                return 1
            key_id = valid.principal.key_id
        elif key_id is None:
            key_id = await store.key_named(KEY_NAME) or await _create_key(ApiKeyStore(database), arguments.project)
        elif not await ApiKeyStore(database).valid_scopes([key_id]):
            print("no valid key has this id; `python -m api.keys list` shows them", file=sys.stderr)
            return 1
        print(f"{arguments.url.rstrip('/')}{link_path(await store.create_link(key_id))}")
    finally:
        await database.dispose()
    print(f"Valid for {LINK_S / 60:.0f} minutes, once.", file=sys.stderr)
    return 0


async def _create_key(store: ApiKeyStore, project: str) -> int:
    created = await store.create(KEY_NAME, generate_key(), project=project, scopes=tuple(Scope), generated=True)
    key_id = parse_id(created or "")
    assert key_id is not None
    return key_id


def _key_id(text: str) -> int:
    key_id = parse_id(text)
    if key_id is None:
        raise argparse.ArgumentTypeError("a key is named by its id, such as key_12")
    return key_id


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.console", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("link", help="print a link that signs in to the console, once")
    create.add_argument("--url", default="http://127.0.0.1:8000", help="the address of the API (default: %(default)s)")
    whose = create.add_mutually_exclusive_group()
    whose.add_argument("--own", action="store_true", help="the session has the rights of the key in HEADRACE_API_KEY")
    whose.add_argument(
        "--key",
        type=_key_id,
        metavar="ID",
        help="the key whose rights the session has (default: a key named `console` with the scopes `admin` and"
        " `inference`, created if there is none)",
    )
    create.add_argument(
        "--project", default="default", help="the project of the key that is created (default: %(default)s)"
    )
    parsed = parser.parse_args(arguments)
    try:
        return asyncio.run(link(parsed))
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
