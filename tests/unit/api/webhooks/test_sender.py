"""Tries of deliveries, with real HTTP receivers that fail in many ways."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai import OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

from api.webhooks import sender as sender_module
from api.webhooks.address_guard import open_client
from api.webhooks.schedule import LAST_RETRY_S, LIFETIME_S
from api.webhooks.secrets import Secret, new_secret
from api.webhooks.sender import MAX_OBJECT_BYTES, Sender, TryResult, signed
from shared.domain.webhook_events import event_id
from tests.support.tls import Authority
from tests.support.webhooks import (
    LOCAL,
    SECRET,
    Answer,
    Receiver,
    delivery,
    endless_body,
    hang,
    nonsense,
    receiving,
    reset,
    status,
    unfinished_body,
)

NO_CONTENT = status(204, body=b"")


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with open_client(LOCAL) as client:
        yield Sender(client, LOCAL)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a fraction of a second where the dispatcher waits for seconds."""
    monkeypatch.setattr(sender_module, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(sender_module, "ANSWER_S", 0.1)


async def test_a_delivery_is_verified_by_the_receiver(sender: Sender, receiver: Receiver) -> None:
    """By the library of Standard Webhooks, and by OpenAI's SDK."""
    identifier = event_id("response.completed", "resp_1")
    one = delivery(receiver.url, event_id=identifier, type="response.completed", object_id="resp_1")
    outcome, result = await sender.send(one)
    assert (outcome.state, outcome.status, outcome.error, result) == ("delivered", 200, None, TryResult.OK)
    (request,) = receiver.requests
    assert request.headers["webhook-id"] == identifier
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("Headrace/")
    body = Webhook(SECRET).verify(request.body, request.headers)
    assert body == {
        "id": identifier,
        "object": "event",
        "created_at": int(one.created_at.timestamp()),
        "type": "response.completed",
        "data": {"id": "resp_1"},
    }
    event = OpenAI(api_key="none", webhook_secret=SECRET).webhooks.unwrap(request.body.decode(), request.headers)
    assert (event.type, event.data.id) == ("response.completed", "resp_1")  # type: ignore[union-attr]
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(request.body, request.headers)


async def test_each_try_is_signed_anew(sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for hour in (0, 5):
        now = datetime.now(UTC) + timedelta(hours=hour)

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return now  # noqa: B023 - used in this round only

        monkeypatch.setattr(sender_module, "datetime", Clock)
        await sender.send(delivery(receiver.url))
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 5 * 3600
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


def test_a_rotated_secret_signs_until_it_expires() -> None:
    old, older, new = new_secret(), new_secret(), new_secret()
    now = datetime.now(UTC)
    secrets = Secret(new), Secret(old, now + timedelta(hours=1)), Secret(older, now - timedelta(seconds=1))
    headers = signed("evt_1", b'{"a":"\xc3\xa9"}', secrets)
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (new, old):
        assert Webhook(secret).verify(b'{"a":"\xc3\xa9"}', headers) == {"a": "é"}
    with pytest.raises(WebhookVerificationError):
        Webhook(older).verify(b'{"a":"\xc3\xa9"}', headers)


async def test_nothing_is_sent_without_a_signature(sender: Sender, receiver: Receiver) -> None:
    outcome, result = await sender.send(delivery(receiver.url, secrets=()))
    assert (outcome.state, result, receiver.connections) == ("pending", TryResult.FORBIDDEN, 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("answer", "result", "error"),
    [
        (status(400), TryResult.REFUSED, "answered 400"),
        (status(404), TryResult.REFUSED, "answered 404"),
        (status(500), TryResult.FAILED, "answered 500"),
        (status(301, "location: http://127.0.0.1:1/"), TryResult.REDIRECT, "redirected with 301"),
        (status(304, body=b""), TryResult.REDIRECT, "redirected with 304"),
        (hang, TryResult.TIMEOUT, "no answer within 0.2 s"),
        (reset, TryResult.UNREACHABLE, "closed before an answer"),
        (nonsense, TryResult.UNREACHABLE, "not HTTP"),
    ],
)
async def test_failures_are_tried_again(
    sender: Sender, receiver: Receiver, answer: Answer, result: TryResult, error: str
) -> None:
    receiver.answer = answer
    outcome, found = await sender.send(delivery(receiver.url))
    assert (outcome.state, found, outcome.gone) == ("pending", result, False)
    assert outcome.error is not None
    assert error in outcome.error
    assert 4 <= outcome.due_in_s <= 6


async def test_a_receiver_that_does_not_listen_is_unreachable(sender: Sender, receiver: Receiver) -> None:
    async with receiving() as stopped:
        url = stopped.url
    outcome, result = await sender.send(delivery(url))
    assert (outcome.state, result, outcome.status) == ("pending", TryResult.UNREACHABLE, None)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", [endless_body, unfinished_body, status(200, body=b"x" * 300_000), NO_CONTENT])
async def test_the_status_decides_whatever_the_body_is(sender: Sender, receiver: Receiver, answer: Answer) -> None:
    receiver.answer = answer
    outcome, result = await sender.send(delivery(receiver.url))
    assert (outcome.state, outcome.error, result) == ("delivered", None, TryResult.OK)
    receiver.answer = status(200)
    assert (await sender.send(delivery(receiver.url)))[1] is TryResult.OK, "the client works afterwards"


async def test_the_certificate_must_be_that_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is opened to an address, and the certificate is checked for the name."""
    authority = Authority(tmp_path)
    monkeypatch.setattr("certifi.where", lambda: str(authority.ca))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.sign("receiver", host="hooks.example"))
    async with receiving(tls=tls) as receiver, open_client(LOCAL, lambda *_: ["127.0.0.1"]) as client:
        sender = Sender(client, LOCAL)
        _, result = await sender.send(delivery(f"https://hooks.example:{receiver.port}/"))
        assert result is TryResult.OK
        outcome, result = await sender.send(delivery(f"https://other.example:{receiver.port}/"))
        assert result is TryResult.UNREACHABLE
        assert outcome.error is not None
        assert "the certificate is not valid" in outcome.error
        assert len(receiver.requests) == 1


async def test_a_body_that_cannot_be_written_is_a_failed_try(sender: Sender, receiver: Receiver) -> None:
    """Without an outcome, it would be tried whenever its lease ends, forever."""
    outcome, result = await sender.send(delivery(receiver.url, data={"spend": 2**70}))
    assert (outcome.state, result) == ("pending", TryResult.UNREACHABLE)
    assert outcome.error is not None
    assert "the request failed" in outcome.error
    assert receiver.connections == 0


async def test_connections_are_used_again(sender: Sender, receiver: Receiver) -> None:
    for _ in range(3):
        await sender.send(delivery(receiver.url))
    assert (len(receiver.requests), receiver.connections) == (3, 1)


async def test_cookies_are_not_kept(sender: Sender, receiver: Receiver) -> None:
    """Receivers of several projects may share a host, and one must not set the cookies of the others."""
    receiver.answer = status(200, "set-cookie: session=of-somebody; path=/")
    for _ in range(2):
        await sender.send(delivery(receiver.url))
    assert len(receiver.requests) == 2
    assert not any("cookie" in request.headers for request in receiver.requests)


@pytest.mark.parametrize("code", [429, 503])
async def test_a_busy_receiver_is_given_time(sender: Sender, receiver: Receiver, code: int) -> None:
    receiver.answer = status(code, "retry-after: 90")
    assert (await sender.send(delivery(receiver.url)))[0].due_in_s == 90
    receiver.answer = status(code, "retry-after: 999999999")
    assert (await sender.send(delivery(receiver.url)))[0].due_in_s == LAST_RETRY_S
    receiver.answer = status(500, "retry-after: 90")
    assert (await sender.send(delivery(receiver.url)))[0].due_in_s < 10


async def test_410_ends_the_delivery(sender: Sender, receiver: Receiver) -> None:
    receiver.answer = status(410)
    outcome, _ = await sender.send(delivery(receiver.url))
    assert (outcome.state, outcome.gone, outcome.status) == ("dead", True, 410)


async def test_a_delivery_that_does_not_succeed_in_72_hours_is_dead(sender: Sender, receiver: Receiver) -> None:
    receiver.answer = status(500)
    late = delivery(receiver.url, trying_s=LIFETIME_S - 3600, attempt=12)
    assert (await sender.send(late))[0].state == "dead"
    replayed = delivery(receiver.url, age_s=2 * LIFETIME_S, tries=13)
    outcome, _ = await sender.send(replayed)
    assert outcome.state == "pending"
    assert outcome.due_in_s <= 6, "its retries begin anew"
    receiver.answer = status(200)
    assert (await sender.send(late))[0].state == "delivered"


async def test_a_full_body_has_the_object() -> None:
    found: dict[str, bytes | None] = {"job_1": b'{"id":"job_1","output":"\xc3\xa9"}', "job_2": None}
    found["job_3"] = b'"' + b"x" * MAX_OBJECT_BYTES + b'"'
    asked: list[tuple[str, int]] = []

    async def read(object_id: str, project_id: int) -> bytes | None:
        asked.append((object_id, project_id))
        return found[object_id]

    async with receiving() as receiver, open_client(LOCAL) as client:
        sender = Sender(client, LOCAL, {"job.*": read})
        for object_id in found:
            await sender.send(delivery(receiver.url, object_id=object_id, full=True, project_id=7))
        await sender.send(delivery(receiver.url, object_id="job_1"))
        await sender.send(delivery(receiver.url, object_id="batch_1", type="batch.completed", full=True))
        bodies = [json.loads(request.body)["data"] for request in receiver.requests]
        assert Webhook(SECRET).verify(receiver.requests[0].body, receiver.requests[0].headers)
    assert asked == [("job_1", 7), ("job_2", 7), ("job_3", 7)]
    assert bodies == [
        {"id": "job_1", "output": "é"},
        {"id": "job_2"},  # it is gone, or its log level is none
        {"id": "job_3"},  # it is too large
        {"id": "job_1"},  # the endpoint wants ids
        {"id": "batch_1"},
    ]


async def test_an_object_that_cannot_be_read_is_sent_by_its_id(receiver: Receiver) -> None:
    """The try has an outcome: otherwise it would be repeated whenever its lease ends, forever."""

    async def broken(_object_id: str, _project_id: int) -> bytes | None:
        raise KeyError("output")

    async def away(_object_id: str, _project_id: int) -> bytes | None:
        raise OSError("the database is away")

    async with open_client(LOCAL) as client:
        outcome, _ = await Sender(client, LOCAL, {"job.*": broken}).send(delivery(receiver.url, full=True))
        with pytest.raises(OSError, match="away"):
            await Sender(client, LOCAL, {"job.*": away}).send(delivery(receiver.url, full=True))
        assert outcome.state == "delivered"
        # What looks like an outage for 72 hours is none.
        late = delivery(receiver.url, full=True, trying_s=LIFETIME_S)
        outcome, _ = await Sender(client, LOCAL, {"job.*": away}).send(late)
    assert outcome.state == "delivered"
    assert [orjson.loads(request.body)["data"] for request in receiver.requests] == [{"id": "job_1"}] * 2


async def test_a_body_may_have_details_beside_the_id(sender: Sender, receiver: Receiver) -> None:
    data = {"threshold": 0.8, "spend_usd": 81.5}
    await sender.send(delivery(receiver.url, type="budget.threshold", object_id="budget_1", data=data))
    assert orjson.loads(receiver.requests[0].body)["data"] == {"id": "budget_1", **data}
