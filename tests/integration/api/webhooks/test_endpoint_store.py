"""Endpoints of webhooks in PostgreSQL, and the secrets of projects."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from api.webhooks import store as endpoint_store
from api.webhooks.store import EndpointStore, NewEndpoint, ProjectSecretStore, is_endpoint_id
from shared.domain.errors import Conflict
from shared.domain.owner import Owner
from shared.postgres.audit_store import AuditStore
from shared.postgres.webhook_tables import WebhookEndpointRow
from tests.support.database import make_owner

NEW = NewEndpoint("https://example.com/hook?token=hidden", "the shop", ("job.*", "batch.completed"), full=True)


@pytest.fixture
def store(database: AsyncEngine) -> EndpointStore:
    return EndpointStore(database, "eu")


async def test_an_endpoint_is_created_found_changed_and_deleted(
    store: EndpointStore, database: AsyncEngine, owner: Owner
) -> None:
    created = await store.create(owner.project_id, NEW, by=owner.key_id)
    assert is_endpoint_id(created.id)
    assert created.id.endswith("_eu")
    assert (created.url, created.description, created.events, created.full) == (
        NEW.url,
        NEW.description,
        NEW.events,
        NEW.full,
    )
    assert (created.disabled, created.failures, created.open_until) == (None, 0, None)
    assert created.secrets[0].secret.startswith("whsec_")
    assert await store.get(created.id, owner.project_id) == created
    assert await store.page(owner.project_id, limit=10) == [created]

    changed = await store.change(created.id, owner.project_id, {"events": ["*"], "full": False}, by=owner.key_id)
    assert changed is not None
    assert (changed.events, changed.full, changed.url) == (("*",), False, NEW.url)
    assert await store.delete(created.id, owner.project_id, by=owner.key_id)
    assert not await store.delete(created.id, owner.project_id, by=owner.key_id)
    assert await store.get(created.id, owner.project_id) is None

    entries = await AuditStore(database).page(limit=10, action="webhook_endpoint")
    assert [entry.action.partition(".")[2] for entry in entries] == ["delete", "change", "create"]
    assert all((entry.object_id, entry.key_id) == (created.id, owner.key_id) for entry in entries)
    assert (entries[1].before, entries[1].after) == (
        {"events": ["job.*", "batch.completed"], "full": True},
        {"events": ["*"], "full": False},
    )
    assert entries[2].after is not None
    assert entries[2].after["url"] == "https://example.com/hook?…"
    assert "hidden" not in str(entries)
    assert "whsec_" not in str(entries)


async def test_the_audit_log_shows_that_only_the_query_of_a_url_has_changed(
    store: EndpointStore, database: AsyncEngine, owner: Owner
) -> None:
    created = await store.create(owner.project_id, NEW, by=owner.key_id)
    await store.change(created.id, owner.project_id, {"url": f"{NEW.url}2"}, by=owner.key_id)
    await store.change(created.id, owner.project_id, {"url": f"{NEW.url}2"}, by=owner.key_id)
    entries = await AuditStore(database).page(limit=10, action="webhook_endpoint.change")
    assert [(entry.before, entry.after) for entry in entries] == [
        ({"url": "https://example.com/hook?…"}, {"url": "https://example.com/hook?… (another query)"})
    ]


async def test_other_projects_find_nothing(store: EndpointStore, database: AsyncEngine, owner: Owner) -> None:
    created = await store.create(owner.project_id, NEW, by=owner.key_id)
    other = await make_owner(database, "other")
    assert await store.get(created.id, other.project_id) is None
    assert await store.page(other.project_id, limit=10) == []
    assert await store.change(created.id, other.project_id, {"full": False}, by=other.key_id) is None
    assert await store.rotate(created.id, other.project_id, overlap_s=0, by=other.key_id) is None
    assert not await store.delete(created.id, other.project_id, by=other.key_id)
    assert await store.get(created.id, None) == created, "operators see all"


async def test_a_project_has_a_limited_number_of_endpoints(
    store: EndpointStore, database: AsyncEngine, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_store, "MAX_ENDPOINTS", 2)
    creations = (store.create(owner.project_id, NEW, by=owner.key_id) for _ in range(5))
    outcomes = await asyncio.gather(*creations, return_exceptions=True)
    refusals = [one for one in outcomes if isinstance(one, Conflict)]
    assert len(refusals) == 3, outcomes
    assert "2 webhook endpoints" in str(refusals[0])
    other = await make_owner(database, "other")
    assert await store.create(other.project_id, NEW, by=other.key_id)


async def test_pages_follow_the_last_id(store: EndpointStore, owner: Owner) -> None:
    ids = [(await store.create(owner.project_id, NEW, by=owner.key_id)).id for _ in range(3)]
    first = await store.page(owner.project_id, limit=2)
    assert [one.id for one in first] == ids[:0:-1]
    assert [one.id for one in await store.page(None, limit=2, after=first[-1].id)] == ids[:1]


async def test_an_endpoint_that_is_enabled_or_moved_starts_without_failures(
    store: EndpointStore, database: AsyncEngine, owner: Owner
) -> None:
    created = await store.create(owner.project_id, NEW, by=owner.key_id)
    for change in ({"disabled": None}, {"url": "https://example.org/"}):
        values = {"failures": 7, "open_until": datetime.now(UTC) + timedelta(hours=1), "disabled": "gone"}
        async with database.connect() as connection:
            await connection.execute(update(WebhookEndpointRow).values(values))
        kept = await store.change(created.id, owner.project_id, {"full": True}, by=owner.key_id)
        assert kept is not None
        assert kept.failures == 7
        changed = await store.change(created.id, owner.project_id, change, by=owner.key_id)
        assert changed is not None
        assert (changed.failures, changed.open_until) == (0, None)


async def test_a_rotation_keeps_the_old_secret_for_the_overlap(store: EndpointStore, owner: Owner) -> None:
    created = await store.create(owner.project_id, NEW, by=owner.key_id)
    found = await store.rotate(created.id, owner.project_id, overlap_s=3600, by=owner.key_id)
    assert found is not None
    rotated, secret = found
    new, old = rotated.secrets
    assert (new.secret, new.expires_at) == (secret, None)
    assert old.secret == created.secrets[0].secret != secret
    assert old.expires_at is not None
    left = old.expires_at - datetime.now(UTC)
    assert timedelta(seconds=3500) < left < timedelta(seconds=3700)
    ended = await store.rotate(created.id, owner.project_id, overlap_s=0, by=owner.key_id)
    assert ended is not None
    assert [one.secret for one in ended[0].secrets] == [ended[1]]


async def test_a_project_gets_one_secret(database: AsyncEngine, owner: Owner) -> None:
    stores = [ProjectSecretStore(database) for _ in range(4)]
    found = await asyncio.gather(*(store.secrets(owner.project_id) for store in stores))
    assert len({secrets[0].secret for secrets in found}) == 1
    (first,) = found[0]
    rotated = await stores[0].rotate(owner.project_id, overlap_s=60, by=owner.key_id)
    assert [one.secret for one in rotated][1] == first.secret
    assert await stores[1].secrets(owner.project_id) == rotated
    other = await make_owner(database, "other")
    assert (await stores[0].secrets(other.project_id))[0].secret not in {one.secret for one in rotated}
    entries = await AuditStore(database).page(limit=10, action="webhook_secret.rotate")
    assert [entry.after for entry in entries] == [{"overlap_s": 60}]
