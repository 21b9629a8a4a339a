"""API keys as an operator handles them: `python -m api.keys`, and what the table then holds."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth import Authenticator
from api.errors import Unauthorized
from shared.api_keys import ApiKeyStore
from tests.support.forked import run_forked
from tests.support.waiting import eventually

Keys = Callable[..., subprocess.CompletedProcess[str]]
CHOSEN = "a-key-that-somebody-chose"


@pytest.fixture
def keys(database_url: str) -> Keys:
    """The command, on a fresh database."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return run_forked("api.keys", *arguments, environment={**os.environ, "DATABASE_URL": database_url, **settings})

    return run


def prefix(key: str) -> str:
    return "_".join(key.split("_")[:2])


async def stored(database: AsyncEngine) -> str:
    """Everything in the table, as text."""
    async with database.connect() as connection:
        rows = await connection.execute(text("SELECT api_keys::text FROM api_keys ORDER BY id"))
        return "\n".join(row[0] for row in rows)


async def test_a_key_is_shown_once_and_stored_as_its_hash(keys: Keys, database: AsyncEngine) -> None:
    made = keys("create", "laptop")
    assert made.returncode == 0
    key = made.stdout.strip()
    assert re.fullmatch(r"hr_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", key)
    assert "shown once" in made.stderr
    row = await stored(database)
    assert hashlib.sha256(key.encode()).hexdigest() in row
    assert prefix(key) in row
    secret = key.removeprefix(prefix(key))
    assert secret not in row
    listed = keys("list").stdout
    assert secret not in listed
    assert re.search(rf"^{prefix(key)} .* valid .* laptop$", listed, re.MULTILINE)


async def test_two_keys_of_a_name_are_two_keys(keys: Keys, database: AsyncEngine) -> None:
    first, second = (keys("create", "laptop").stdout.strip() for _ in range(2))
    assert first != second
    store = ApiKeyStore(database)
    assert await store.find(first) != await store.find(second)


async def test_a_revoked_key_is_found_no_more(keys: Keys, database: AsyncEngine) -> None:
    kept, gone = (keys("create", name).stdout.strip() for name in ("kept", "gone"))
    assert keys("revoke", prefix(gone)).returncode == 0
    store = ApiKeyStore(database)
    assert await store.find(gone) is None
    assert await store.find(kept) is not None
    lines = keys("list").stdout.splitlines()
    assert [("revoked" in line, line.split()[-1]) for line in lines] == [(False, "kept"), (True, "gone")]


def test_revoking_what_is_not_valid_says_so(keys: Keys) -> None:
    key = keys("create", "laptop").stdout.strip()
    assert keys("revoke", prefix(key)).returncode == 0
    for wrong in (prefix(key), "hr_00000000", ""):
        again = keys("revoke", wrong)
        assert (again.returncode, again.stderr) == (1, f"no valid key has the prefix {wrong!r}\n")


async def test_ensure_makes_a_chosen_key_once(keys: Keys, database: AsyncEngine) -> None:
    for _ in range(2):
        made = keys("ensure", "default", HEADRACE_API_KEY=CHOSEN)
        assert (made.returncode, made.stdout) == (0, "")
    assert await ApiKeyStore(database).find(CHOSEN) is not None
    (row,) = (await stored(database)).splitlines()
    assert CHOSEN not in row
    assert CHOSEN[:5] not in keys("list").stdout


def test_ensure_says_when_the_key_was_revoked(keys: Keys) -> None:
    keys("ensure", "default", HEADRACE_API_KEY=CHOSEN)
    assert keys("revoke", CHOSEN[:4]).returncode == 0
    again = keys("ensure", "default", HEADRACE_API_KEY=CHOSEN)
    assert again.returncode == 1
    assert "HEADRACE_API_KEY" in again.stderr
    assert "revoked" in again.stderr


@pytest.mark.parametrize("key", ["", "short"])
def test_ensure_refuses_a_guessable_key(keys: Keys, key: str) -> None:
    refused = keys("ensure", "default", HEADRACE_API_KEY=key)
    assert refused.returncode == 2
    assert refused.stderr == "HEADRACE_API_KEY: must have at least 16 characters\n"


@pytest.mark.parametrize("arguments", [(), ("create",), ("delete", "x"), ("revoke",)])
def test_a_wrong_command_shows_the_usage(keys: Keys, arguments: tuple[str, ...]) -> None:
    refused = keys(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: python -m api.keys")


async def test_a_revoked_key_works_no_longer_than_it_is_cached(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "laptop").stdout.strip()
    cached, uncached = (Authenticator(ApiKeyStore(database), cache_s=seconds) for seconds in (1.0, 0.0))
    assert await cached.key_id(key) == await uncached.key_id(key)
    await ApiKeyStore(database).revoke(prefix(key))
    with pytest.raises(Unauthorized, match="not valid"):
        await uncached.key_id(key)

    async def refused() -> bool:
        try:
            await cached.key_id(key)
        except Unauthorized:
            return True
        return False

    await eventually(refused, "the cached key is refused", within_s=5)
