"""`python -m api.keys create|rotate|revoke|set|tier|log-level|list|ensure`: manages API keys.

They are in the database at DATABASE_URL.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from api.keys.changes import MAX_NAME, NAME, NEVER, KeyChanges, ProjectChanges, changed_project_options
from api.keys.option_arguments import (
    NONE,
    UNSET,
    OptionsInvalid,
    add_option_arguments,
    describe,
    has_options,
    with_arguments,
)
from api.keys.principal import DEFAULT_PRIORITY_FLOOR, Scope
from api.keys.store import ApiKey, ApiKeyStore, ProjectExists, generate_key, parse_id
from api.settings import DatabaseCommandSettings
from shared.config.durations import duration_s
from shared.config.settings import settings_or_exit
from shared.domain.answer_options import NO_KEY_OPTIONS
from shared.domain.errors import InvalidRequest, UnreadableRow
from shared.domain.log_level import LogLevel, require_log_key
from shared.domain.priorities import MAX_PRIORITY
from shared.postgres.engine import connect

DEFAULT_OVERLAP = "24h"
# A key that an operator chose must not be easy to guess.
MIN_CHOSEN_KEY = 16
MIN_CHOSEN_CHARACTERS = 8
NEVER_EXPIRES = "never"


async def run(arguments: argparse.Namespace) -> int:
    settings = settings_or_exit(DatabaseCommandSettings)
    try:
        level = getattr(arguments, "log_level", None)
        if level is not None and level != UNSET:
            require_log_key(LogLevel(level), "log level", has_key=bool(settings.log_key))
    except InvalidRequest as error:
        print(error.message, file=sys.stderr)
        return 2
    engine = connect(settings.database_url, pool_size=1)
    try:
        return await ACTIONS[arguments.action](ApiKeyStore(engine), arguments)
    finally:
        await engine.dispose()


async def create(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    try:
        options = with_arguments(NO_KEY_OPTIONS, arguments)
    except OptionsInvalid as error:
        return _invalid(error)
    key = generate_key()
    try:
        key_id = await store.create(
            arguments.name,
            key,
            project=arguments.project,
            # Without --project, the key must not gain access to what an older key of its name has created.
            new_project=arguments.project is None,
            scopes=arguments.scope or (Scope.INFERENCE,),
            expires_in_s=arguments.expires,
            priority_floor=arguments.priority_floor,
            options=options,
            generated=True,
        )
    except ProjectExists:
        print(
            f"the project {arguments.name!r} exists; add --project {arguments.name} to create another of its keys,"
            " or choose another name",
            file=sys.stderr,
        )
        return 1
    _show(key, key_id)
    return 0


async def rotate(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    if (old_id := await _key_id(store, arguments.id)) is None:
        return 1
    key = generate_key()
    new_id = await store.rotate(old_id, key, overlap_s=arguments.overlap, expires_in_s=arguments.expires)
    if new_id is None:
        return _not_valid(arguments.id)
    _show(key, new_id)
    print(f"Limits and budgets of {arguments.id} do not apply to it; create them for it.", file=sys.stderr)
    return 0


async def ensure(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    key = os.environ.get("HEADRACE_API_KEY", "")
    if len(key) < MIN_CHOSEN_KEY:
        print(f"HEADRACE_API_KEY: must have at least {MIN_CHOSEN_KEY} characters", file=sys.stderr)
        return 2
    if await store.find(key) is None and len(set(key)) < MIN_CHOSEN_CHARACTERS:
        print(
            f"HEADRACE_API_KEY: can be guessed: it must have at least {MIN_CHOSEN_CHARACTERS} different characters",
            file=sys.stderr,
        )
        return 2
    scopes = arguments.scope or ()
    created = await store.create(arguments.name, key, project=arguments.project, scopes=scopes or (Scope.INFERENCE,))
    if created is None:
        await store.add_scopes(key, scopes)
    if await store.find(key) is None:
        print("HEADRACE_API_KEY: this key was revoked or has expired; set another", file=sys.stderr)
        return 1
    return 0


async def list_keys(store: ApiKeyStore, _: argparse.Namespace) -> int:
    for key in await store.all():
        print(_line(key))
    return 0


async def revoke(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    if (key_id := await _key_id(store, arguments.id)) is None:
        return 1
    return 0 if await store.revoke(key_id) else _not_valid(arguments.id)


async def change_key(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    if (key_id := await _key_id(store, arguments.id)) is None:
        return 1
    try:
        changed = await store.change(
            key_id,
            KeyChanges(
                name=arguments.name,
                scopes=arguments.scope,
                priority_floor=arguments.priority_floor,
                expires_in_s=arguments.expires,
                options=(lambda options: with_arguments(options, arguments)) if has_options(arguments) else None,
            ),
        )
    except OptionsInvalid as error:
        return _invalid(error)
    return 0 if changed else _not_valid(arguments.id)


async def set_tier(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    tier = None if arguments.tier == NONE else arguments.tier
    return await _change_project(store, arguments.project, ProjectChanges(tier=tier))


async def set_log_level(store: ApiKeyStore, arguments: argparse.Namespace) -> int:
    level = None if arguments.log_level == UNSET else LogLevel(arguments.log_level)
    options = partial(changed_project_options, patch={"log_level": level})
    return await _change_project(store, arguments.project, ProjectChanges(options=options))


async def _change_project(store: ApiKeyStore, name: str, changes: ProjectChanges) -> int:
    if await store.change_project(name, changes):
        return 0
    print(f"there is no project {name!r}; `list` shows the projects", file=sys.stderr)
    return 1


ACTIONS = {
    "create": create,
    "rotate": rotate,
    "ensure": ensure,
    "list": list_keys,
    "revoke": revoke,
    "set": change_key,
    "tier": set_tier,
    "log-level": set_log_level,
}


async def _key_id(store: ApiKeyStore, text: str) -> int | None:
    """The number of a key's id. If the text is no id, prints which keys may be meant, and returns None.

    The text is not printed, because it may be a key.
    """
    if (key_id := parse_id(text)) is not None:
        return key_id
    print("a key is named by its id, such as key_12, which `list` shows", file=sys.stderr)
    for candidate in await store.candidates(text):
        print(f"    {_line(candidate)}", file=sys.stderr)
    return None


def _not_valid(key_id: str) -> int:
    print(f"no valid key has the id {key_id}", file=sys.stderr)
    return 1


def _invalid(error: OptionsInvalid) -> int:
    print(error, file=sys.stderr)
    return 2


def _line(key: ApiKey) -> str:
    used = f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
    priorities = f"{key.priority_floor}-{MAX_PRIORITY}"
    described = describe(key.options) if key.options is not None else "options-of-another-version"
    options = " ".join(filter(None, [described, f"tier={key.tier}" if key.tier is not None else ""]))
    return (
        f"{key.id:<8} {key.prefix or '-':<12} {key.created_at:%Y-%m-%d %H:%M}  {key.state(datetime.now(UTC)):<26}"
        f" {used:<22} {','.join(key.scopes):<16} {priorities:<4} {key.project:<16} {key.name}"
        + (f"  [{options}]" if options else "")
    )


def _show(key: str, key_id: str | None) -> None:
    print(key)
    print(f"This key is shown once; only its hash is stored. Its id is {key_id}.", file=sys.stderr)


def priority(text: str) -> int:
    """A priority from 0 to 9."""
    if not re.fullmatch(r"[0-9]", text):
        raise argparse.ArgumentTypeError(f"must be a priority from 0 to {MAX_PRIORITY}, got {text!r}")
    return int(text)


def key_name(text: str) -> str:
    """The name of a key."""
    if not re.fullmatch(NAME, text) or len(text) > MAX_NAME:
        raise argparse.ArgumentTypeError(f"must be a name of one line, with at most {MAX_NAME} characters")
    return text


def expiry_s(text: str) -> float:
    """Seconds of a duration, or NEVER."""
    return NEVER if text == NEVER_EXPIRES else duration_s(text)


def tier_name(text: str) -> str:
    """The name of a tier."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"must be a name such as free, of letters, digits and ._-, got {text!r}")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)

    create_key = actions.add_parser("create", help="create a key and show it, once")
    create_key.add_argument("name")
    _add_project(create_key)
    _add_scope(create_key)
    _add_expiry(create_key)
    _add_priority_floor(create_key, default=DEFAULT_PRIORITY_FLOOR)
    add_option_arguments(create_key)

    rotate_key = actions.add_parser(
        "rotate", help="create a successor of a key, without its limits and budgets, and let the old key expire"
    )
    _add_id(rotate_key)
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
    _add_scope(ensure_key, "; a stored key gains those that it does not have")
    actions.add_parser(
        "list", help="list keys: id, public prefix, state, last use, scopes, priorities, project, name, options"
    )
    _add_id(actions.add_parser("revoke", help="make a key invalid"))
    set_key = actions.add_parser("set", help="change a key; what is not given remains as it is")
    _add_id(set_key)
    set_key.add_argument("--name", type=key_name, help="another name")
    set_key.add_argument(
        "--scope", action="append", type=Scope, choices=list(Scope), help="its only scope; repeat it for several"
    )
    set_key.add_argument(
        "--expires",
        type=expiry_s,
        metavar="DURATION",
        help=f"how long it is valid from now on, such as 90d; `{NEVER_EXPIRES}`: for ever",
    )
    _add_priority_floor(set_key)
    add_option_arguments(set_key)
    tier = actions.add_parser("tier", help="change the tier of a project, which the rules of routes can name")
    tier.add_argument("project", help="the project's name")
    tier.add_argument("tier", type=tier_name, help=f"the name of the tier, such as free; `{NONE}` removes it")

    log_level = actions.add_parser("log-level", help="change what the request log keeps of a project's jobs")
    log_level.add_argument("project", help="the project's name")
    log_level.add_argument(
        "log_level",
        choices=[*LogLevel, UNSET],
        metavar="LEVEL",
        help=f"{', '.join(LogLevel)}; `{UNSET}`: what the installation keeps",
    )

    parsed = parser.parse_args(arguments)
    changes = ("name", "scope", "expires", "priority_floor")
    if parsed.action == "set" and all(getattr(parsed, name) is None for name in changes) and not has_options(parsed):
        set_key.error("give at least one option to change")
    try:
        return asyncio.run(run(parsed))
    except UnreadableRow as error:
        print(error, file=sys.stderr)
        return 1
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        return 1


def _add_scope(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument(
        "--scope",
        action="append",
        type=Scope,
        choices=list(Scope),
        help=f"what the key may be used for; repeat it for several (default: inference){more}",
    )


def _add_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--project",
        help="the project that the key belongs to, created if missing (default: a new project with the key's name)",
    )


def _add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the key's id, which `list` shows")


def _add_priority_floor(parser: argparse.ArgumentParser, *, default: int | None = None) -> None:
    parser.add_argument(
        "--priority-floor",
        type=priority,
        default=default,
        metavar="PRIORITY",
        help="the most urgent priority that the key's jobs may have; 0 is the most urgent of all"
        + ("" if default is None else f" (default: {default})"),
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
