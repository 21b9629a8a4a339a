"""Deliveries as clients see them: lists, tries, replays and test events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal
from api.webhooks import delivery_store
from api.webhooks.address_guard import AddressPolicy
from api.webhooks.delivery_store import (
    MAX_TRIES,
    Delivery,
    DeliveryQuery,
    DeliveryState,
    DeliveryStore,
    format_id,
    parse_id,
)
from api.webhooks.request_webhooks import RequestWebhooks
from api.webhooks.service import WebhookService
from api.webhooks.store import EndpointStore, NewEndpoint, ProjectSecretStore
from shared.domain.errors import Conflict
from shared.domain.owner import Owner
from shared.postgres.webhook_tables import WebhookDeliveryRow, WebhookEndpointRow, WebhookTryRow
from tests.support.database import make_owner

URL = "https://example.com/hook"
NOW = datetime.now(UTC)
MANY = """
INSERT INTO webhook_deliveries (event_id, project_id, url, type, object_id, state, ended_at)
SELECT 'evt_' || n, :project, 'https://example.com/', 'job.completed', 'job_' || n,
    CASE WHEN n % 3000 = 0 THEN 'dead' ELSE 'delivered' END, now()
FROM generate_series(1, 30000) AS n
"""
DEAD, DELIVERED = DeliveryState.DEAD, DeliveryState.DELIVERED


@pytest.fixture
def store(database: AsyncEngine) -> DeliveryStore:
    return DeliveryStore(database)


async def add(database: AsyncEngine, owner: Owner, number: int, **values: Any) -> int:
    row = {
        "event_id": f"evt_{number}",
        "project_id": owner.project_id,
        "url": None if "endpoint_id" in values else URL,
        "type": "job.completed",
        "object_id": f"job_{number}",
        **values,
    }
    if row.get("state", "pending") != "pending":
        row["ended_at"] = NOW
    async with database.connect() as connection:
        statement = insert(WebhookDeliveryRow).values(row).returning(WebhookDeliveryRow.id)
        return int((await connection.execute(statement)).scalar_one())


async def add_endpoint(database: AsyncEngine, owner: Owner) -> str:
    new = NewEndpoint(URL, None, ("*",), full=False)
    return (await EndpointStore(database).create(owner.project_id, new, by=owner.key_id)).id


async def found(store: DeliveryStore, delivery_id: int) -> Delivery:
    delivery = await store.get(delivery_id, None)
    assert delivery is not None
    return delivery


def test_ids_are_numbers_with_a_prefix() -> None:
    assert (format_id(12), parse_id("delivery_12")) == ("delivery_12", 12)
    for wrong in ("delivery_", "delivery_x", "12", "delivery_1\n", "delivery_" + "9" * 19):
        assert parse_id(wrong) is None


async def test_lists_are_narrowed_and_follow_the_last_id(
    store: DeliveryStore, database: AsyncEngine, owner: Owner
) -> None:
    endpoint, other = await add_endpoint(database, owner), await make_owner(database, "other")
    ids = [
        await add(database, owner, 1),
        await add(database, owner, 2, endpoint_id=endpoint, state="dead"),
        await add(database, owner, 3, endpoint_id=endpoint, type="batch.failed"),
        await add(database, other, 4, state="delivered"),
    ]

    async def listed(project_id: int | None = owner.project_id, **conditions: Any) -> list[int]:
        return [one.id for one in await store.page(DeliveryQuery(project_id, **conditions), limit=10)]

    assert await listed() == [ids[2], ids[1], ids[0]]
    assert await listed(None) == ids[::-1]
    assert await listed(endpoint_id=endpoint) == [ids[2], ids[1]]
    assert await listed(endpoint_id=endpoint, state=DEAD) == [ids[1]]
    assert await listed(type="batch.failed") == [ids[2]]
    assert await listed(None, state=DELIVERED) == [ids[3]]
    page = await store.page(DeliveryQuery(owner.project_id), limit=2, after=ids[2])
    assert [one.id for one in page] == [ids[1], ids[0]]
    assert await store.get(ids[3], owner.project_id) is None
    assert await listed(endpoint_id="\0") == await listed(type="\0") == [], "no text has U+0000"


async def test_dead_deliveries_are_found_among_many(store: DeliveryStore, database: AsyncEngine, owner: Owner) -> None:
    statements: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    async with database.connect() as connection:
        await connection.execute(text(MANY), {"project": owner.project_id})
        await connection.execute(text("ANALYZE webhook_deliveries"))
    event.listen(database.sync_engine, "before_cursor_execute", record)
    found = await store.page(DeliveryQuery(owner.project_id, state=DEAD), limit=20)
    assert await store.replay_dead(DeliveryQuery(owner.project_id), NOW - timedelta(days=1)) == len(found) == 10
    event.remove(database.sync_engine, "before_cursor_execute", record)
    async with database.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        for statement, parameters in statements:
            plan = [row[0] for row in await driver.fetch(f"EXPLAIN {statement}", *parameters)]
            assert any("webhook_deliveries_dead" in line for line in plan), plan


async def test_a_delivery_shows_its_tries(store: DeliveryStore, database: AsyncEngine, owner: Owner) -> None:
    delivery_id = await add(database, owner, 1, tries=2)
    async with database.connect() as connection:
        tries: list[dict[str, Any]] = [
            {"delivery_id": delivery_id, "number": 1, "status": None, "error": "no answer", "duration_ms": 10_000},
            {"delivery_id": delivery_id, "number": 2, "status": 503, "error": "answered 503", "duration_ms": 12},
        ]
        await connection.execute(insert(WebhookTryRow), tries)
    delivery = await found(store, delivery_id)
    assert (delivery.url, delivery.tries, delivery.status, delivery.error) == (URL, 2, 503, "answered 503")
    assert [(one.number, one.status, one.error) for one in await store.tries(delivery_id)] == [
        (1, None, "no answer"),
        (2, 503, "answered 503"),
    ]


async def test_a_delivery_of_a_deleted_endpoint_is_not_shown(
    store: DeliveryStore, database: AsyncEngine, owner: Owner
) -> None:
    endpoint = await add_endpoint(database, owner)
    delivery_id = await add(database, owner, 1, endpoint_id=endpoint)
    assert (await found(store, delivery_id)).url == URL
    await EndpointStore(database).delete(endpoint, owner.project_id, by=owner.key_id)
    assert await store.get(delivery_id, None) is None
    assert await store.page(DeliveryQuery(None), limit=10) == []


async def test_only_deliveries_that_have_ended_are_replayed(
    store: DeliveryStore, database: AsyncEngine, owner: Owner
) -> None:
    pending = await add(database, owner, 1, due_at=NOW + timedelta(hours=1))
    assert not await store.replay(pending)
    assert (await found(store, pending)).due_at == NOW + timedelta(hours=1)
    for number, state in enumerate(("dead", "delivered"), 2):
        ended = await add(database, owner, number, state=state, tries=3)
        assert await store.replay(ended)
        delivery = await found(store, ended)
        assert (delivery.state, delivery.ended_at, delivery.tries) == (DeliveryState.PENDING, None, 3)
        assert delivery.due_at <= datetime.now(UTC) + timedelta(seconds=5)
        assert not await store.replay(ended), "it is pending now"


async def test_dead_deliveries_since_a_time_are_replayed(
    store: DeliveryStore, database: AsyncEngine, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, disabled = await add_endpoint(database, owner), await add_endpoint(database, owner)
    async with database.connect() as connection:
        statement = update(WebhookEndpointRow).where(WebhookEndpointRow.id == disabled)
        await connection.execute(statement.values(disabled="operator"))
    other = await make_owner(database, "other")
    new = [
        await add(database, owner, 1, state="dead"),
        await add(database, owner, 2, state="dead", endpoint_id=endpoint),
        await add(database, owner, 3, state="dead", endpoint_id=endpoint, type="job.failed"),
    ]
    kept = [
        await add(database, owner, 4, state="delivered"),
        await add(database, owner, 5, state="dead", created_at=NOW - timedelta(days=2)),
        await add(database, owner, 6, state="dead", endpoint_id=disabled),
        await add(database, other, 7, state="dead"),
    ]
    query, since = DeliveryQuery(owner.project_id), NOW - timedelta(days=1)
    assert await store.replay_dead(DeliveryQuery(owner.project_id, endpoint, type="job.failed"), since) == 1
    monkeypatch.setattr(delivery_store, "MAX_REPLAYED", 1)
    assert await store.replay_dead(query, since) == 1
    assert [(await found(store, one)).state for one in new] == ["pending", "dead", "pending"], "the oldest first"
    assert await store.replay_dead(query, since) == 1
    assert await store.replay_dead(query, since) == 0
    assert [(await found(store, one)).state for one in kept] == ["delivered", "dead", "dead", "dead"]


async def test_a_delivery_is_not_replayed_forever(store: DeliveryStore, database: AsyncEngine, owner: Owner) -> None:
    """The number of tries has a limit, which a client must not be able to reach: no dispatcher could lease it."""
    last = await add(database, owner, 1, state="dead", tries=MAX_TRIES - 1)
    over = await add(database, owner, 2, state="dead", tries=MAX_TRIES)
    assert await store.replay(last)
    assert not await store.replay(over)
    assert await store.replay_dead(DeliveryQuery(owner.project_id), NOW - timedelta(days=1)) == 0
    secrets = ProjectSecretStore(database)
    service = WebhookService(EndpointStore(database), store, secrets, RequestWebhooks(secrets, AddressPolicy()))
    principal = Principal.of(owner)
    with pytest.raises(Conflict, match="1000 times"):
        await service.replay(principal, format_id(over), owner.project_id)


async def test_each_test_event_is_a_delivery(store: DeliveryStore, database: AsyncEngine, owner: Owner) -> None:
    endpoint = await add_endpoint(database, owner)
    first, second = [await found(store, await store.send_test(endpoint, owner.project_id)) for _ in range(2)]
    assert first.event_id != second.event_id
    assert (first.type, first.object_id, first.endpoint_id, first.state) == (
        "webhook.test",
        endpoint,
        endpoint,
        DeliveryState.PENDING,
    )
    assert first.due_at < first.created_at == first.next_try_at, "it is tried before others"
