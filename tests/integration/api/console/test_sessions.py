"""Sessions of the console, and the one-time links that start them."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.session_store import SessionStore
from api.console.sessions import Sessions
from api.keys.auth import Authenticator
from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore, generate_key, parse_id
from shared.domain.errors import Unauthorized


@pytest.fixture
def keys(database: AsyncEngine) -> ApiKeyStore:
    return ApiKeyStore(database)


@pytest.fixture
def sessions(database: AsyncEngine, keys: ApiKeyStore) -> Sessions:
    """Sessions without a cache."""
    return Sessions(database, 0, Authenticator(keys, 0))


@pytest.fixture
async def key(keys: ApiKeyStore) -> str:
    key = generate_key()
    await keys.create("ann", key, project="search", scopes=[Scope.ADMIN], generated=True)
    return key


async def principal_of(keys: ApiKeyStore, key: str) -> Principal:
    found = await keys.find(key)
    assert found is not None
    return found.principal


async def age(database: AsyncEngine, seconds: float) -> None:
    """Let time pass for all sessions and links."""
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE console_sessions SET expires_at = expires_at - make_interval(secs => :seconds)"),
            {"seconds": seconds},
        )


async def test_a_session_has_the_rights_of_its_key(sessions: Sessions, keys: ApiKeyStore, key: str) -> None:
    token = await sessions.sign_in(key)
    principal = await sessions.principal(token)
    assert principal == await principal_of(keys, key)
    names = await sessions.names(principal)
    assert (names.key, names.project) == ("ann", "search")


async def test_only_hashes_are_stored(database: AsyncEngine, sessions: Sessions, key: str) -> None:
    token = await sessions.sign_in(key)
    async with database.connect() as connection:
        rows = str((await connection.execute(text("SELECT * FROM console_sessions"))).all())
    assert token not in rows
    assert key not in rows


async def test_a_session_ends_after_twelve_hours(database: AsyncEngine, sessions: Sessions, key: str) -> None:
    token = await sessions.sign_in(key)
    await age(database, 12 * 3600 - 60)
    await sessions.principal(token)
    await age(database, 60)
    with pytest.raises(Unauthorized):
        await sessions.principal(token)


async def test_a_cached_session_ends_in_time(database: AsyncEngine, keys: ApiKeyStore, key: str) -> None:
    store = SessionStore(database)
    await store.create((await principal_of(keys, key)).key_id, "token", is_link=False, lifetime_s=5)
    found = await store.find("token")
    assert found is not None
    assert found.expires_in_s is not None
    assert 0 < found.expires_in_s <= 5, "the authenticator caches it no longer"


async def test_a_session_ends_with_its_key(sessions: Sessions, keys: ApiKeyStore, key: str) -> None:
    token, link = await sessions.sign_in(key), await sessions.create_link(await principal_of(keys, key))
    await keys.revoke((await principal_of(keys, key)).key_id)
    with pytest.raises(Unauthorized):
        await sessions.principal(token)
    with pytest.raises(Unauthorized):
        await sessions.sign_in_by_link(link)


async def test_signing_out_ends_one_session(database: AsyncEngine, keys: ApiKeyStore, key: str) -> None:
    sessions = Sessions(database, 60, Authenticator(keys, 60))
    token, other = await sessions.sign_in(key), await sessions.sign_in(key)
    for known in (token, other):
        await sessions.principal(known)
    await sessions.sign_out(token)
    with pytest.raises(Unauthorized):
        await sessions.principal(token)
    await sessions.principal(other)


async def test_a_link_starts_one_session(sessions: Sessions, keys: ApiKeyStore, key: str) -> None:
    principal = await principal_of(keys, key)
    link = await sessions.create_link(principal)
    with pytest.raises(Unauthorized):
        await sessions.principal(link)
    token = await sessions.sign_in_by_link(link)
    assert await sessions.principal(token) == principal
    with pytest.raises(Unauthorized):
        await sessions.sign_in_by_link(link)
    with pytest.raises(Unauthorized):
        await sessions.sign_in_by_link(token)


async def test_a_link_expires(database: AsyncEngine, sessions: Sessions, keys: ApiKeyStore, key: str) -> None:
    link = await sessions.create_link(await principal_of(keys, key))
    await age(database, 600)
    with pytest.raises(Unauthorized):
        await sessions.sign_in_by_link(link)


async def test_expired_sessions_are_removed_by_the_next(database: AsyncEngine, sessions: Sessions, key: str) -> None:
    for _ in range(3):
        await sessions.sign_in(key)
    await age(database, 12 * 3600)
    await sessions.sign_in(key)
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM console_sessions"))).scalar_one() == 1


async def test_the_key_for_links_has_both_scopes(database: AsyncEngine, keys: ApiKeyStore) -> None:
    store = SessionStore(database)
    await keys.create("console", generate_key(), project="p", scopes=[Scope.INFERENCE])
    assert await store.key_named("console") is None
    created = await keys.create("console", generate_key(), project="p", scopes=list(Scope))
    assert created is not None
    assert await store.key_named("console") == parse_id(created)
