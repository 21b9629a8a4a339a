"""`python -m migrations upgrade|downgrade [REVISION]|current|grant ROLE`: migrate the database at DATABASE_URL.

`grant` gives a role what API and workers need, and no more; HEADRACE_ROLE_PASSWORD sets its password.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from alembic import command
from sqlalchemy.exc import SQLAlchemyError

from migrations.roles import grant
from shared.config.settings import Settings, settings_or_exit
from shared.postgres.schema_version import alembic_config


class DatabaseSettings(Settings):
    """Settings without Redis, which migrations do not use."""

    redis_url: str = "redis://unused"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    parser.add_argument("step", choices=("upgrade", "downgrade", "current", "grant"))
    parser.add_argument(
        "revision", nargs="?", help="default: head for upgrade, one step for downgrade. For grant: the role's name"
    )
    arguments = parser.parse_args()
    if arguments.step == "grant" and not arguments.revision:
        parser.error("grant requires the name of a role")
    config = alembic_config()
    url = config.attributes["url"] = settings_or_exit(DatabaseSettings).database_url
    try:
        match arguments.step:
            case "upgrade":
                command.upgrade(config, arguments.revision or "head")
            case "downgrade":
                command.downgrade(config, arguments.revision or "-1")
            case "current":
                command.current(config)
            case "grant":
                asyncio.run(grant(url, arguments.revision, os.environ.get("HEADRACE_ROLE_PASSWORD") or None))
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be migrated: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
