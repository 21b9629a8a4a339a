"""The dispatcher of webhooks, with PostgreSQL and real receivers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook

from api.webhooks.address_guard import open_client
from api.webhooks.delivery_store import DeliveryStore
from api.webhooks.dispatcher import HELD_PER_PLACE, Dispatcher
from api.webhooks.outbox import DueDelivery, Outbox, TryOutcome
from api.webhooks.schedule import BREAKER_THRESHOLD, CONCURRENCY, MAX_CONCURRENCY
from api.webhooks.secrets import Secret, to_stored
from api.webhooks.sender import Sender, TryResult
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.webhook_events import EventType
from shared.postgres.job_store import JobStore
from shared.postgres.webhook_outbox import insert_event
from shared.runtime.aio import cancel_and_wait
from shared.telemetry.metrics import Metrics
from tests.support.metrics import api_metrics
from tests.support.webhooks import (
    LOCAL,
    SECRET,
    add_delivery,
    add_endpoint,
    deliveries,
    endpoint_row,
    hang,
    receiving,
    status,
    tries,
)

# Deliveries of a new target that a process holds at most.
HELD = HELD_PER_PLACE * CONCURRENCY


@pytest.fixture
def metrics() -> Metrics:
    return api_metrics("m")


@asynccontextmanager
async def opened(database: AsyncEngine, metrics: Metrics, outbox: Outbox | None = None) -> AsyncIterator[Dispatcher]:
    """A dispatcher that does not run."""
    async with open_client(LOCAL) as client:
        yield Dispatcher(outbox or Outbox(database), Sender(client, LOCAL), metrics, retention_s=3600)


@asynccontextmanager
async def dispatching(
    database: AsyncEngine, metrics: Metrics, outbox: Outbox | None = None
) -> AsyncIterator[Dispatcher]:
    """A running dispatcher."""
    async with opened(database, metrics, outbox) as dispatcher:
        task = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            await cancel_and_wait(task)


class Watched(Outbox):
    """An outbox that signals what was written."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.finished: list[TryOutcome] = []
        self._changed = asyncio.Condition()

    async def finish(self, outcomes: Sequence[TryOutcome]) -> list[bool]:
        written = await super().finish(outcomes)
        async with self._changed:
            self.finished += [one for one, is_written in zip(outcomes, written, strict=True) if is_written]
            self._changed.notify_all()
        return written

    async def wait(self, count: int) -> list[TryOutcome]:
        """Wait until so many outcomes are written."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.finished) >= count)
        return self.finished


@pytest.fixture
def outbox(database: AsyncEngine) -> Watched:
    return Watched(database)


async def sql(database: AsyncEngine, statement: str, **values: Any) -> None:
    async with database.begin() as connection:
        await connection.execute(text(statement), values)


async def test_an_event_is_delivered(database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched) -> None:
    async with receiving() as receiver:
        await add_endpoint(database, owner.project_id, receiver.url, "batch.*")
        async with dispatching(database, metrics, outbox):
            async with database.begin() as connection:
                await insert_event(connection, owner.project_id, EventType.BATCH_COMPLETED, "batch_1")
            await outbox.wait(1)
    (request,) = receiver.requests
    (row,) = await deliveries(database)
    assert Webhook(SECRET).verify(request.body, request.headers)["data"] == {"id": "batch_1"}
    assert request.headers["webhook-id"] == row.event_id
    assert (row.state, row.tries) == ("delivered", 1)
    assert row.ended_at is not None
    (one,) = await tries(database)
    assert (one.delivery_id, one.number, one.status, one.error) == (row.id, 1, 200, None)
    text_of = metrics.registry()
    assert text_of.get_sample_value("headrace_webhook_deliveries_total", {"state": "delivered"}) == 1
    assert text_of.get_sample_value("headrace_webhook_tries_total", {"result": "2xx"}) == 1
    assert text_of.get_sample_value("headrace_webhook_lag_seconds_count") == 1


async def test_a_requests_own_url_is_signed_with_the_projects_secret(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    await _give_secret(database)
    async with receiving() as receiver, dispatching(database, metrics, outbox):
        await add_delivery(database, owner.project_id, 1, url=receiver.url)
        await outbox.wait(1)
    (request,) = receiver.requests
    assert Webhook(SECRET).verify(request.body, request.headers)["type"] == "job.completed"


async def test_an_endpoint_whose_secrets_cannot_be_read_does_not_keep_others_from_their_events(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    async with receiving() as receiver, dispatching(database, metrics, outbox):
        broken = await add_endpoint(database, owner.project_id, receiver.url, secrets=[{"key": "x"}, "y"])
        works = await add_endpoint(database, owner.project_id, receiver.url)
        for endpoint in (broken, works):
            await add_delivery(database, owner.project_id, 1, endpoint_id=endpoint)
        found = {one.delivery.endpoint_id: one for one in await outbox.wait(2)}
    assert found[broken].error == "the URL has no secret that signs its requests"
    assert found[works].state == "delivered"
    assert len(receiver.requests) == 1


async def test_a_failed_try_is_repeated_with_the_same_id(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    async with receiving(status(500, body=b"a secret")) as receiver:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        await add_delivery(database, owner.project_id, 1, endpoint_id=endpoint)
        async with dispatching(database, metrics, outbox):
            await outbox.wait(1)
            (row,) = await deliveries(database)
            assert (row.state, row.tries, row.ended_at) == ("pending", 1, None)
            assert (await endpoint_row(database, endpoint)).failures == 1
            receiver.answer = status(200)
            await sql(database, "UPDATE webhook_deliveries SET due_at = now()")
            await outbox.wait(2)
    assert [request.headers["webhook-id"] for request in receiver.requests] == ["evt_1"] * 2
    (row,) = await deliveries(database)
    assert (row.state, row.tries) == ("delivered", 2)
    assert [(one.number, one.status, one.error) for one in await tries(database)] == [
        (1, 500, "answered 500"),
        (2, 200, None),
    ]
    assert (await endpoint_row(database, endpoint)).failures == 0


async def test_a_lost_process_between_the_answer_and_the_write_loses_nothing(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    """The delivery is repeated with the same `webhook-id`, and what the lost process would have written is not."""
    answered, late = asyncio.Event(), asyncio.Event()

    class Stuck(Outbox):
        async def finish(self, outcomes: Sequence[TryOutcome]) -> list[bool]:
            answered.set()
            await late.wait()
            return await super().finish(outcomes)

    async with receiving() as receiver, opened(database, metrics, Stuck(database)) as lost:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        await add_delivery(database, owner.project_id, 1, endpoint_id=endpoint)
        await lost.look()
        await answered.wait()
        async with dispatching(database, metrics, outbox) as other:
            await other.look()
            assert len(receiver.requests) == 1, "the lease is respected"
            await sql(database, "UPDATE webhook_deliveries SET due_at = now()")  # as if it had ended
            await outbox.wait(1)
        late.set()
        await _drained(lost)
    assert [request.headers["webhook-id"] for request in receiver.requests] == ["evt_1"] * 2
    (row,) = await deliveries(database)
    assert (row.state, row.tries) == ("delivered", 2)
    assert [one.number for one in await tries(database)] == [2]


async def test_a_replay_of_an_old_event_is_retried_like_a_new_one(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    async with receiving(status(500)) as receiver, opened(database, metrics, outbox) as dispatcher:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        await add_delivery(database, owner.project_id, 1, endpoint_id=endpoint, state="dead", tries=13)
        await sql(
            database,
            "UPDATE webhook_deliveries SET created_at = now() - interval '9 days', ended_at = now()",
        )
        (row,) = await deliveries(database)
        assert await DeliveryStore(database).replay(row.id)
        await dispatcher.look()
        await _drained(dispatcher)
        (row,) = await deliveries(database)
        assert (row.state, row.tries, row.tries_before) == ("pending", 14, 13)
        (outcome,) = outbox.finished
        assert (outcome.delivery.attempt, outcome.due_in_s <= 6) == (1, True)
        # 72 hours later it is dead.
        await sql(
            database,
            "UPDATE webhook_deliveries SET replayed_at = now() - interval '72 hours', due_at = now()",
        )
        await dispatcher.look()
        await _drained(dispatcher)
        assert outbox.finished[-1].delivery.attempt == 2
    (row,) = await deliveries(database)
    assert row.state == "dead"


async def test_a_dead_endpoint_delays_no_other(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    """It never answers, and has many deliveries, which are older."""
    async with receiving(hang) as dead, receiving() as receiver:
        first = await add_endpoint(database, owner.project_id, dead.url)
        second = await add_endpoint(database, owner.project_id, receiver.url)
        for number in range(60):
            await add_delivery(database, owner.project_id, number, endpoint_id=first)
        for number in range(60):
            await add_delivery(database, owner.project_id, number, endpoint_id=second)
        async with dispatching(database, metrics, outbox):
            await outbox.wait(60)
            assert len(dead.requests) == CONCURRENCY
    assert {one.delivery.endpoint_id for one in outbox.finished} == {second}
    assert Counter(row.state for row in await deliveries(database)) == {"delivered": 60, "pending": 60}


async def test_an_endpoint_that_fails_is_left_alone(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    async with receiving(status(500)) as receiver, opened(database, metrics, outbox) as dispatcher:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        for number in range(3 * HELD):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        await dispatcher.look()
        await _drained(dispatcher)
        row = await endpoint_row(database, endpoint)
        asked = len(receiver.requests)
        assert BREAKER_THRESHOLD <= row.failures == asked <= BREAKER_THRESHOLD + CONCURRENCY
        assert row.open_until is not None
        # What was leased and not tried was given back.
        assert Counter(one.tries for one in await deliveries(database)) == {1: asked, 0: 3 * HELD - asked}
        await dispatcher.look()
        assert len(receiver.requests) == asked
        # After the pause, one delivery is tried; it succeeds, and the others follow.
        receiver.answer = status(200)
        await sql(database, "UPDATE webhook_endpoints SET open_until = now()")
        dispatcher._standings[endpoint] = replace(dispatcher._standings[endpoint], open_until=0.0)
        await dispatcher.look()
        await _drained(dispatcher)
        assert len(receiver.requests) == asked + 1
        row = await endpoint_row(database, endpoint)
        assert (row.failures, row.open_until) == (0, None)
        await dispatcher.look()
        await _drained(dispatcher)
        assert len(receiver.requests) > asked + 1


async def test_a_host_of_requests_own_urls_that_fails_is_left_alone(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    await _give_secret(database)
    async with (
        receiving(status(500)) as broken,
        receiving() as receiver,
        opened(database, metrics, outbox) as dispatcher,
    ):
        for number in range(2 * HELD):
            await add_delivery(database, owner.project_id, number, url=f"{broken.url}/{number}")
        await dispatcher.look()
        await _drained(dispatcher)
        asked = len(broken.requests)
        assert asked <= BREAKER_THRESHOLD + CONCURRENCY
        await add_delivery(database, owner.project_id, 1000, url=receiver.url)
        await dispatcher.look()
        await _drained(dispatcher)
        assert (len(broken.requests), len(receiver.requests)) == (asked, 1)


async def test_the_breaker_of_an_endpoint_is_the_databases(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process holds it only until it is written: whoever corrects the URL does not wait."""
    monkeypatch.setattr("api.webhooks.dispatcher.HOLD_S", 0.0)
    async with receiving(status(500)) as receiver, opened(database, metrics, outbox) as dispatcher:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        for number in range(HELD):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        await dispatcher.look()
        await _drained(dispatcher)
        asked = len(receiver.requests)
        assert (await endpoint_row(database, endpoint)).open_until is not None
        await dispatcher.look()
        await _drained(dispatcher)
        assert len(receiver.requests) == asked
        receiver.answer = status(200)
        await sql(database, "UPDATE webhook_endpoints SET failures = 0, open_until = NULL")
        await dispatcher.look()
        await _drained(dispatcher)
    assert len(receiver.requests) > asked + 1


async def test_a_test_event_waits_neither_for_others_nor_for_the_breaker(
    database: AsyncEngine, owner: Owner, metrics: Metrics
) -> None:
    async with receiving() as receiver, opened(database, metrics) as dispatcher:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url, failures=BREAKER_THRESHOLD)
        for number in range(3):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        await sql(database, "UPDATE webhook_endpoints SET open_until = now() + interval '1 hour'")
        await dispatcher.look()
        await _drained(dispatcher)
        assert receiver.requests == []
        await DeliveryStore(database).send_test(endpoint, owner.project_id)
        await dispatcher.look()
        await _drained(dispatcher)
    (request,) = receiver.requests
    assert orjson.loads(request.body)["type"] == "webhook.test"
    assert (await endpoint_row(database, endpoint)).failures == 0


async def test_an_endpoint_that_answers_gets_more_places_until_it_fails(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    answered, failing = 100, asyncio.Event()

    async def answer(request: Any, writer: asyncio.StreamWriter) -> bool:
        if len(receiver.requests) <= answered:
            return await status(200)(request, writer)
        await failing.wait()
        return await status(500)(request, writer)

    async with receiving(answer) as receiver:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        async with database.begin() as connection:
            await connection.execute(
                text(
                    "INSERT INTO webhook_deliveries (event_id, project_id, endpoint_id, type, object_id)"
                    " SELECT 'evt_' || n, :project, :endpoint, 'job.completed', 'job_1' FROM generate_series(1, 300) n"
                ),
                {"project": owner.project_id, "endpoint": endpoint},
            )
        async with dispatching(database, metrics, outbox) as dispatcher:
            await receiver.wait(answered + MAX_CONCURRENCY)
            assert len(_open(dispatcher)) == MAX_CONCURRENCY
            failing.set()
            await outbox.wait(answered + MAX_CONCURRENCY)
            assert dispatcher._standings[endpoint].places == CONCURRENCY
            assert dispatcher._standings[endpoint].fails
    # If the failures are written in two steps, the endpoint's fewer places are used in between.
    assert len(receiver.requests) <= answered + MAX_CONCURRENCY + CONCURRENCY


async def test_an_outcome_that_cannot_be_written_does_not_keep_others_from_it(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    async with receiving() as receiver, opened(database, metrics, outbox) as dispatcher:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        for number in range(3):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        send = dispatcher._sender.send

        async def with_an_unstorable_error(delivery: DueDelivery) -> tuple[TryOutcome, TryResult]:
            outcome, result = await send(delivery)
            return replace(outcome, error="\0" if delivery.event_id == "evt_1" else None), result

        dispatcher._sender.send = with_an_unstorable_error  # type: ignore[method-assign]
        await dispatcher.look()
        await _drained(dispatcher)
        assert dispatcher._unwritten == 0
    assert [row.state for row in await deliveries(database)] == ["delivered", "pending", "delivered"]


async def test_outcomes_that_are_not_written_limit_what_is_sent(
    database: AsyncEngine, owner: Owner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent meanwhile would be sent again once its lease ends."""
    monkeypatch.setattr("api.webhooks.dispatcher.MAX_HELD", HELD)
    late = asyncio.Event()

    class Stuck(Outbox):
        async def finish(self, outcomes: Sequence[TryOutcome]) -> list[bool]:
            await late.wait()
            return await super().finish(outcomes)

    async with receiving() as receiver, opened(database, metrics, Stuck(database)) as dispatcher:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        for number in range(2 * HELD):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        for _ in range(5):
            await dispatcher.look()
            while tasks := _open(dispatcher):
                await asyncio.wait(tasks)
        assert len(receiver.requests) == HELD
        late.set()
        await _drained(dispatcher)
        await dispatcher.look()
        await _drained(dispatcher)
        assert len(receiver.requests) > HELD
    assert Counter(row.tries for row in await deliveries(database) if row.state == "delivered").keys() == {1}


async def test_hosts_of_requests_own_urls_leave_room_for_endpoints(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client can name any number of hosts, none of which ever answers."""
    monkeypatch.setattr("api.webhooks.dispatcher.MAX_HELD", 8)
    monkeypatch.setattr("api.webhooks.dispatcher.MAX_HELD_OF_URLS", 4)
    monkeypatch.setattr("api.webhooks.dispatcher.MAX_LEASED", 2)
    await _give_secret(database)
    async with (
        receiving(hang) as dead,
        receiving() as receiver,
        open_client(LOCAL, lambda *_: ["127.0.0.1"]) as client,
    ):
        dispatcher = Dispatcher(outbox, Sender(client, LOCAL), metrics, retention_s=3600)
        for number in range(20):
            await add_delivery(database, owner.project_id, number, url=f"http://h{number}.example:{dead.port}/")
        for _ in range(5):
            await dispatcher.look()
        await dead.wait(4)
        assert len(_open(dispatcher)) == 4
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        await add_delivery(database, owner.project_id, 100, endpoint_id=endpoint)
        await dispatcher.look()
        await receiver.wait(1)
        await cancel_and_wait(*_open(dispatcher))
        await _drained(dispatcher)
    assert len(dead.requests) == 4


async def test_no_target_always_waits_for_the_others(database: AsyncEngine, owner: Owner) -> None:
    """If there is room for one only, chance decides."""
    outbox = Outbox(database)
    endpoints = {await add_endpoint(database, owner.project_id, "https://example.com/") for _ in range(3)}
    for number in range(40):
        for endpoint in endpoints:
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
    arguments: dict[str, Any] = {"shares": {}, "share": 1, "room": 1, "lease_s": 60}
    assert {one.target for _ in range(40) for one in await outbox.claim(**arguments)} == endpoints


async def test_each_target_gets_its_share(database: AsyncEngine, owner: Owner) -> None:
    """Also beside others whose deliveries are not due."""
    outbox = Outbox(database)
    first, second, third, blocked = [
        await add_endpoint(database, owner.project_id, "https://example.com/") for _ in range(4)
    ]
    for number in range(5):
        for endpoint in (first, second, third, blocked):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        await add_delivery(database, owner.project_id, 10 + number, url=f"https://h{number}.example/x")
    await sql(
        database,
        "UPDATE webhook_deliveries SET due_at = now() + interval '1 hour' WHERE endpoint_id = :id OR url LIKE '%h0.%'",
        id=third,
    )
    found = await outbox.claim(shares={second: 4, blocked: 0, "https://h1.example": 0}, share=2, room=64, lease_s=60)
    counts = Counter(one.target for one in found)
    assert counts == {first: 2, second: 4, "https://h2.example": 1, "https://h3.example": 1, "https://h4.example": 1}
    assert [one.event_id for one in found if one.target == second] == ["evt_0", "evt_1", "evt_2", "evt_3"]
    again = await outbox.claim(shares={}, share=8, room=64, lease_s=60, urls=False)
    assert Counter(one.target for one in again) == {first: 3, second: 1, blocked: 5}


async def test_410_disables_an_endpoint(database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched) -> None:
    async with receiving(status(410)) as receiver, opened(database, metrics, outbox) as dispatcher:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        await add_delivery(database, owner.project_id, 1, endpoint_id=endpoint)
        await dispatcher.look()
        await _drained(dispatcher)
        await add_delivery(database, owner.project_id, 2, endpoint_id=endpoint)
        await dispatcher.look()
        await _drained(dispatcher)
        assert len(receiver.requests) == 1
    assert (await endpoint_row(database, endpoint)).disabled == "gone"
    assert [row.state for row in await deliveries(database)] == ["dead", "pending"]


async def test_several_dispatchers_deliver_each_event_once(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched
) -> None:
    async with receiving() as receiver, contextlib.AsyncExitStack() as stack:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        for number in range(100):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        for _ in range(3):
            await stack.enter_async_context(dispatching(database, metrics, outbox))
        await outbox.wait(100)
    assert Counter(Counter(request.headers["webhook-id"] for request in receiver.requests).values()) == {1: 100}
    assert {row.state for row in await deliveries(database)} == {"delivered"}


async def test_a_process_that_stops_gives_back_what_it_has_not_tried(
    database: AsyncEngine, owner: Owner, metrics: Metrics, outbox: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has begun may end."""
    go_on = asyncio.Event()

    async def slow(request: Any, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await status(200)(request, writer)

    async with receiving(slow) as receiver:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        for number in range(2 * CONCURRENCY):
            await add_delivery(database, owner.project_id, number, endpoint_id=endpoint)
        async with opened(database, metrics, outbox) as dispatcher:
            task = asyncio.create_task(dispatcher.run())
            await receiver.wait(CONCURRENCY)
            released = asyncio.Event()
            release = outbox.release

            async def note(given: Any) -> None:
                await release(given)
                released.set()

            monkeypatch.setattr(outbox, "release", note)
            task.cancel()
            await released.wait()
            go_on.set()
            await asyncio.wait([task])
    rows = await deliveries(database)
    found = Counter((row.state, row.tries) for row in rows)
    assert found == {("delivered", 1): CONCURRENCY, ("pending", 0): CONCURRENCY}


async def test_an_outage_of_the_database_does_not_end_the_dispatcher(
    database: AsyncEngine, owner: Owner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.webhooks.dispatcher.UNUSED_S", 0.01)
    monkeypatch.setattr("api.webhooks.dispatcher.WRITE_PAUSES_S", (0.0,))
    outbox = Watched(database)
    failing = iter([True, True])

    async def claim(**arguments: Any) -> Any:
        if next(failing, False):
            raise OSError("the database is away")
        return await Outbox.claim(outbox, **arguments)

    monkeypatch.setattr(outbox, "claim", claim)
    async with receiving() as receiver:
        endpoint = await add_endpoint(database, owner.project_id, receiver.url)
        await add_delivery(database, owner.project_id, 1, endpoint_id=endpoint)
        async with dispatching(database, metrics, outbox):
            await outbox.wait(1)
    assert len(receiver.requests) == 1


async def test_old_deliveries_are_deleted(database: AsyncEngine, owner: Owner, metrics: Metrics) -> None:
    endpoint = await add_endpoint(database, owner.project_id, "https://example.com/")
    disabled = await add_endpoint(database, owner.project_id, "https://example.com/", disabled="operator")
    for number, columns in enumerate(
        [
            {"endpoint_id": endpoint, "state": "delivered"},
            {"endpoint_id": endpoint, "state": "dead"},
            {"endpoint_id": endpoint},
            {"endpoint_id": disabled},
            {"endpoint_id": disabled, "event_id": "evt_replayed"},
            {"endpoint_id": "endpoint_that_was_deleted"},
        ]
    ):
        await add_delivery(database, owner.project_id, number, **columns)
    await sql(database, "UPDATE webhook_deliveries SET ended_at = now() - interval '2 hours' WHERE state = 'delivered'")
    await sql(database, "UPDATE webhook_deliveries SET ended_at = now() - interval '1 minute' WHERE state = 'dead'")
    await sql(
        database,
        "UPDATE webhook_deliveries SET created_at = now() - interval '5 days', due_at = now() - interval '4 days'"
        " WHERE endpoint_id = :id",
        id=disabled,
    )
    await sql(
        database,
        "UPDATE webhook_deliveries SET due_at = now() - interval '2 days' WHERE event_id = 'evt_replayed'",
    )
    insertion = "INSERT INTO webhook_tries (delivery_id, number, duration_ms) SELECT id, 1, 5 FROM webhook_deliveries"
    await sql(database, insertion)
    async with opened(database, metrics) as dispatcher:
        await dispatcher.sweep()
    rows = await deliveries(database)
    assert [(row.endpoint_id, row.state) for row in rows] == [
        (endpoint, "dead"),
        (endpoint, "pending"),
        (disabled, "dead"),
        (disabled, "pending"),
    ]
    assert len(await tries(database)) == 4


async def test_pending_deliveries_are_counted(database: AsyncEngine, owner: Owner) -> None:
    outbox = Outbox(database)
    assert (await outbox.state()).in_use is False
    await add_delivery(database, owner.project_id, 1, url="https://example.com/")
    state = await outbox.state()
    assert (state.in_use, state.pending) == (True, 1)
    await sql(database, "UPDATE webhook_deliveries SET state = 'delivered'")
    assert (await outbox.state()).in_use is False
    await add_endpoint(database, owner.project_id, "https://example.com/")
    assert (await outbox.state()).in_use is True


async def test_the_content_of_a_job_with_log_level_none_is_not_sent(
    database: AsyncEngine, owner: Owner, store: JobStore
) -> None:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    outbox = Outbox(database)
    assert await outbox.keeps_content(job.id)
    await sql(database, "UPDATE jobs SET log_level = 'none'")
    assert not await outbox.keeps_content(job.id)
    assert not await outbox.keeps_content("job_unknown")


def _open(dispatcher: Dispatcher) -> list[asyncio.Task[None]]:
    """The tries of the dispatcher."""
    return [task for one in dispatcher._targets.values() for task in one.open]


async def _drained(dispatcher: Dispatcher) -> None:
    """Wait until the dispatcher holds no deliveries."""
    while tasks := [*dispatcher._writing, *_open(dispatcher)]:
        await asyncio.wait(tasks)


async def _give_secret(database: AsyncEngine) -> None:
    stored = orjson.dumps(to_stored([Secret(SECRET)])).decode()
    await sql(database, "UPDATE projects SET webhook_secrets = CAST(:stored AS jsonb)", stored=stored)
