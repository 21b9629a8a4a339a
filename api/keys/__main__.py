"""`python -m api.keys create|rotate|revoke|list|ensure`: manages API keys in the database at DATABASE_URL."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from api.keys.principal import Scope
from api.keys.store import ApiKeyStore, ProjectExists, generate_key
from api.settings import ApiSettings
from shared.config.settings import settings_or_exit
from shared.postgres.engine import connect

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
DEFAULT_OVERLAP = "24h"
MIN_CHOSEN_KEY = 16


class KeySettings(ApiSettings):
    """The command needs only the database."""

    redis_url: str = "redis://unused"


async def run(arguments: argparse.Namespace) -> int:
    engine = connect(settings_or_exit(KeySettings).database_url, pool_size=1)
    try:
        return await ACTIONS[arguments.action](ApiKeyStore(engine), arguments)
    finally:
        await engine.dispose()


async def create(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    key = generate_key()
    try:
        await store.create(
            arguments.name,
            key,
            project=arguments.project,
            # Without --project, the key must not gain access to what an older key of its name has created.
            new_project=arguments.project is None,
            scopes=arguments.scope or (Scope.INFERENCE,),
            expires_in_s=arguments.expires,
        )
    except ProjectExists:
        print(
            f"the project {arguments.name!r} exists; add --project {arguments.name} to create another of its keys,"
            " or choose another name",
            file=sys.stderr,
        )
        return 1
    _show(key)
    return 0


async def rotate(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    key = generate_key()
    found = await store.rotate(arguments.prefix, key, overlap_s=arguments.overlap, expires_in_s=arguments.expires)
    if found != 1:
        which = "no valid key has" if not found else f"{found} valid keys have"
        print(f"{which} the prefix {arguments.prefix!r}", file=sys.stderr)
        return 1
    _show(key)
    return 0


async def ensure(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    key = os.environ.get("HEADRACE_API_KEY", "")
    if len(key) < MIN_CHOSEN_KEY:
        print(f"HEADRACE_API_KEY: must have at least {MIN_CHOSEN_KEY} characters", file=sys.stderr)
        return 2
    await store.create(arguments.name, key, project=arguments.project)
    if await store.find(key) is None:
        print("HEADRACE_API_KEY: this key was revoked or has expired; set another", file=sys.stderr)
        return 1
    return 0


async def list_keys(store: ApiKeyStore, _: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    for key in await store.all():
        used = f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
        print(
            f"{key.prefix:<16} {key.created_at:%Y-%m-%d %H:%M}  {key.state(now):<26} {used:<22}"
            f" {','.join(key.scopes):<16} {key.project:<16} {key.name}"
        )
    return 0


async def revoke(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    if not await store.revoke(arguments.prefix):
        print(f"no valid key has the prefix {arguments.prefix!r}", file=sys.stderr)
        return 1
    return 0


ACTIONS = {"create": create, "rotate": rotate, "ensure": ensure, "list": list_keys, "revoke": revoke}


def _show(key: str) -> None:
    print(key)
    print("This key is shown once; only its hash is stored.", file=sys.stderr)


def duration_s(text: str) -> float:
    """Seconds of a duration such as `90d`, `24h`, `30m` or `45s`."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a duration such as 90d, 24h, 30m or 45s, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)

    create_key = actions.add_parser("create", help="create a key and show it, once")
    create_key.add_argument("name")
    _add_project(create_key)
    create_key.add_argument(
        "--scope",
        action="append",
        type=Scope,
        choices=list(Scope),
        help="what the key may be used for; repeat it for several (default: inference)",
    )
    _add_expiry(create_key)

    rotate_key = actions.add_parser("rotate", help="create a successor of a key, and let the old key expire")
    rotate_key.add_argument("prefix")
    rotate_key.add_argument(
        "--overlap",
        type=duration_s,
        default=DEFAULT_OVERLAP,
        metavar="DURATION",
        help=f"how long the old key remains valid (default: {DEFAULT_OVERLAP})",
    )
    _add_expiry(rotate_key)

    ensure_key = actions.add_parser("ensure", help="store the key that HEADRACE_API_KEY has, unless it is stored")
    ensure_key.add_argument("name")
    _add_project(ensure_key)
    actions.add_parser("list", help="list keys by their public prefix")
    actions.add_parser("revoke", help="make a key invalid").add_argument("prefix")

    try:
        return asyncio.run(run(parser.parse_args(arguments)))
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        return 1


def _add_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--project",
        help="the project that the key belongs to, created if missing (default: a new project with the key's name)",
    )


def _add_expiry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expires",
        type=duration_s,
        metavar="DURATION",
        help="how long the key is valid, such as 90d (default: for ever)",
    )


if __name__ == "__main__":
    sys.exit(main())
