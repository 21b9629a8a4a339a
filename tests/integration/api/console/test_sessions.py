"""Sessions of the console, and the one-time links that start them."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.key_names import KeyNamesStore
from api.console.session_store import SessionStore
from api.console.sessions import Sessions
from api.keys.auth import Authenticator
from api.keys.open_requests import OpenRequests
from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore, digest, generate_key, parse_id
from api.settings import ApiSettings
from shared.domain.errors import Unauthorized
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics


@pytest.fixture
def keys(database: AsyncEngine) -> ApiKeyStore:
    return ApiKeyStore(database)


@pytest.fixture
def requests() -> OpenRequests:
    """The open requests of a process."""
    settings = ApiSettings(database_url="postgresql://unused", redis_url="redis://unused")
    return OpenRequests(settings, Metrics(Exporter.API, []))


@pytest.fixture
def sessions(database: AsyncEngine, keys: ApiKeyStore, requests: OpenRequests) -> Sessions:
    """Sessions without a cache."""
    return Sessions(database, 0, Authenticator(keys, 0), requests, KeyNamesStore(database))


class Client:
    """A browser with a request that is being answered; counts how often its connection is closed."""

    def __init__(self, requests: OpenRequests, principal: Principal, token: str) -> None:
        self.closed = 0
        self.request = requests.enter(principal, self._disconnect, digest(token))

    def _disconnect(self) -> None:
        self.closed += 1


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


async def test_signing_out_ends_one_session_and_its_requests(
    database: AsyncEngine, keys: ApiKeyStore, requests: OpenRequests, key: str
) -> None:
    sessions = Sessions(database, 60, Authenticator(keys, 60), requests, KeyNamesStore(database))
    token, other = await sessions.sign_in(key), await sessions.sign_in(key)
    principal = await sessions.principal(token)
    await sessions.principal(other)
    stream, signing_out = Client(requests, principal, token), Client(requests, principal, token)
    others = [Client(requests, principal, other), Client(requests, principal, token)]
    requests.leave(others[1].request)
    await sessions.sign_out(token, signing_out.request)
    with pytest.raises(Unauthorized):
        await sessions.principal(token)
    await sessions.principal(other)
    assert stream.closed == 1
    assert stream.request.interrupted
    assert await sessions.check() == 1, "it has not left yet"
    assert (signing_out.closed, others[0].closed, others[1].closed) == (0, 0, 0), "it is answered; those are of others"


async def test_the_requests_of_an_expired_session_end(
    database: AsyncEngine, keys: ApiKeyStore, requests: OpenRequests, key: str
) -> None:
    sessions = Sessions(database, 60, Authenticator(keys, 60), requests, KeyNamesStore(database))
    tokens = [await sessions.sign_in(key) for _ in range(2)]
    streams = [Client(requests, await sessions.principal(token), token) for token in tokens]
    from_program = requests.enter(streams[0].request.principal, None)
    assert await sessions.check() == 0
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE console_sessions SET expires_at = now() WHERE sha256 = :sha256"), {"sha256": digest(tokens[0])}
        )
    assert await sessions.check() == 1
    assert [stream.closed for stream in streams] == [1, 0]
    assert not from_program.interrupted
    with pytest.raises(Unauthorized):
        await sessions.principal(tokens[0])


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
