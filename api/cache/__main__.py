"""`python -m api.cache purge`: removes answers from the response cache in the database at DATABASE_URL."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from api.cache.store import CacheStore
from api.settings import DatabaseCommandSettings
from shared.config.durations import duration_s
from shared.config.settings import settings_or_exit
from shared.postgres.engine import connect


async def purge(arguments: argparse.Namespace) -> int:
    """Remove the answers that the arguments select; returns the exit status."""
    engine = connect(settings_or_exit(DatabaseCommandSettings).database_url, pool_size=1)
    try:
        store, project_id = CacheStore(engine), None
        if arguments.project is not None and (project_id := await store.project_id(arguments.project)) is None:
            print(f"there is no project {arguments.project!r}", file=sys.stderr)
            return 1
        count = await store.purge(project_id=project_id, model=arguments.model, older_than_s=arguments.older_than)
    finally:
        await engine.dispose()
    print(f"removed {count} answers from the response cache")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.cache", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("purge", help="remove answers; their jobs remain")
    action.add_argument("--project", metavar="NAME", help="only those of this project")
    action.add_argument("--model", metavar="NAME", help="only those of this model")
    action.add_argument(
        "--older-than", type=duration_s, metavar="DURATION", help="only those that are older, such as 7d"
    )
    action.add_argument("--all", action="store_true", help="without a selection: all answers of all projects")
    parsed = parser.parse_args(arguments)
    selected = any(value is not None for value in (parsed.project, parsed.model, parsed.older_than))
    if selected == parsed.all:
        action.error("select answers by --project, --model or --older-than, or remove all of them by --all")
    try:
        return asyncio.run(purge(parsed))
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
