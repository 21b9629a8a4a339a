"""`headrace webhooks`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.command_line import run
from tests.support.scripted_api import ScriptedApi, reply

PATH = "/v1/webhooks"
ID = "endpoint_01a2"
ENDPOINT: dict[str, Any] = {
    "id": ID, "object": "webhook_endpoint", "url": "https://example.com/hook", "description": None,
    "events": ["job.*", "batch.completed"], "full": False, "enabled": True, "disabled_reason": None, "failures": 0,
    "paused_until": None, "old_secret_expires_at": None, "created_at": "2026-11-30T12:00:00Z",
}  # fmt: skip
DELIVERY: dict[str, Any] = {
    "id": "delivery_3", "object": "webhook_delivery", "event_id": "evt_9", "type": "job.failed", "object_id": "job_7",
    "endpoint": None, "url": "https://example.com/hook", "state": "dead", "tries": 2, "last_status": 500,
    "last_error": "answered 500", "next_try_at": None, "created_at": "2026-11-30T12:00:00Z",
    "ended_at": "2026-11-30T13:00:00Z",
}  # fmt: skip
TRIES = [
    {"number": 1, "at": "2026-11-30T12:00:01Z", "status": None, "error": "no answer", "duration_ms": 10_000},
    {"number": 2, "at": "2026-11-30T13:00:00Z", "status": 500, "error": "answered 500", "duration_ms": 12},
]


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": list(items),
        "has_more": False,
        "first_id": items[0]["id"],
        "last_id": items[-1]["id"],
    }


def test_endpoints_are_listed(api: ScriptedApi) -> None:
    gone = {**ENDPOINT, "id": "endpoint_02", "enabled": False, "disabled_reason": "gone"}
    failing = {**ENDPOINT, "id": "endpoint_03", "failures": 6, "paused_until": "2026-11-30T12:00:00Z"}
    api.on(f"GET {PATH}/endpoints", reply(page(ENDPOINT, gone, failing)))
    result = run(api.url, "webhooks")
    assert result.exit_code == 0, result.stderr
    header, first, second, third = result.stdout.splitlines()
    assert header.split() == ["ENDPOINT", "URL", "EVENTS", "STATE", "CREATED"]
    assert "job.*, batch.completed" in first
    assert "enabled" in first
    assert "disabled (gone)" in second
    assert "failing (6)" in third


def test_an_endpoint_is_added_and_its_secret_printed(api: ScriptedApi) -> None:
    api.on(f"POST {PATH}/endpoints", reply({**ENDPOINT, "secret": "whsec_x"}))
    result = run(api.url, "webhooks", "add", "https://example.com/hook", "--event", "job.*", "--full")
    assert (result.exit_code, result.stdout) == (0, "whsec_x\n"), result.stderr
    assert ID in result.stderr
    assert api.requests[-1].json == {"url": "https://example.com/hook", "events": ["job.*"], "full": True}
    run(api.url, "webhooks", "add", "https://example.com/hook", "--description", "the shop")
    assert api.requests[-1].json["events"] == ["*"]
    assert api.requests[-1].json["description"] == "the shop"


def test_an_endpoint_is_changed(api: ScriptedApi) -> None:
    api.on(f"PATCH {PATH}/endpoints/{ID}", reply(ENDPOINT))
    result = run(api.url, "webhooks", "set", ID, "--event", "*", "--thin", "--disable")
    assert (result.exit_code, result.stdout) == (0, f"{ID}  changed\n"), result.stderr
    assert api.requests[-1].json == {"events": ["*"], "full": False, "enabled": False}


def test_secrets_are_rotated(api: ScriptedApi) -> None:
    until = "2026-12-01T12:00:00Z"
    api.on(f"POST {PATH}/endpoints/{ID}/rotate", reply({**ENDPOINT, "secret": "new", "old_secret_expires_at": until}))
    of_project = {"object": "webhook_secret", "secret": "mine", "old_secret_expires_at": None}
    api.on(f"POST {PATH}/secret/rotate", reply(of_project))
    api.on(f"GET {PATH}/secret", reply(of_project))
    result = run(api.url, "webhooks", "rotate", ID, "--overlap", "1h")
    assert (result.exit_code, result.stdout) == (0, "new\n"), result.stderr
    assert "The old secret signs too until 2026-12-01" in result.stderr
    assert api.requests[-1].json == {"overlap_s": 3600}
    assert run(api.url, "webhooks", "rotate").stdout == "mine\n"
    assert api.requests[-1].json == {}
    assert run(api.url, "webhooks", "secret").stdout == "mine\n"


def test_endpoints_are_removed_after_a_question(api: ScriptedApi) -> None:
    api.on(f"DELETE {PATH}/endpoints/{ID}", reply({"id": ID, "object": "webhook_endpoint.deleted", "deleted": True}))
    assert run(api.url, "webhooks", "remove", ID).exit_code == 2, "there is no terminal"
    result = run(api.url, "webhooks", "remove", ID, "--yes")
    assert (result.exit_code, result.stdout) == (0, f"{ID}  removed\n"), result.stderr


@pytest.mark.parametrize(("state", "exit_code"), [("delivered", 0), ("pending", 1)])
def test_a_test_waits_for_the_first_try(api: ScriptedApi, state: str, exit_code: int) -> None:
    sent = {**DELIVERY, "type": "webhook.test", "state": "pending", "tries": 0, "try_log": []}
    api.on(f"POST {PATH}/endpoints/{ID}/test", reply(sent))
    tried = {**sent, "state": state, "tries": 1, "try_log": TRIES[1:]}
    api.on(f"GET {PATH}/deliveries/delivery_3", reply(sent), reply(tried))
    result = run(api.url, "webhooks", "test", ID)
    assert result.exit_code == exit_code, result.stderr
    assert state in result.stdout
    assert "answered 500" in result.stdout


def test_deliveries_are_listed_and_shown(api: ScriptedApi) -> None:
    api.on(f"GET {PATH}/deliveries", reply(page(DELIVERY)))
    api.on(f"GET {PATH}/deliveries/delivery_3", reply({**DELIVERY, "try_log": TRIES}))
    result = run(api.url, "webhooks", "deliveries", "--state", "dead", "--endpoint", ID, "--event", "job.failed")
    assert result.exit_code == 0, result.stderr
    for shown in ("delivery_3", "job.failed", "job_7", "dead", "500 answered 500"):
        assert shown in result.stdout.splitlines()[1]
    for parameter in ("state=dead", f"endpoint={ID}", "type=job.failed"):
        assert parameter in api.requests[-1].path
    result = run(api.url, "webhooks", "delivery", "delivery_3")
    for shown in ("evt_9", "try 1", "no answer", "10000 ms", "try 2"):
        assert shown in result.stdout


def test_deliveries_are_replayed(api: ScriptedApi) -> None:
    api.on(f"POST {PATH}/deliveries/delivery_3/replay", reply({**DELIVERY, "state": "pending"}))
    api.on(f"POST {PATH}/deliveries/replay", reply({"object": "webhook_replay", "replayed": 7, "has_more": True}))
    result = run(api.url, "webhooks", "replay", "delivery_3")
    assert (result.exit_code, result.stdout) == (0, "delivery_3  pending\n"), result.stderr
    result = run(api.url, "webhooks", "replay", "--dead-since", "2h", "--endpoint", ID)
    assert (result.exit_code, result.stdout) == (0, "7 sent again\n"), result.stderr
    assert "There are more" in result.stderr
    body = api.requests[-1].json
    assert body["endpoint"] == ID
    since = datetime.now(UTC) - datetime.fromisoformat(body["since"])
    assert timedelta(hours=1, minutes=55) < since < timedelta(hours=2, minutes=5)


@pytest.mark.parametrize(
    "arguments", [f"set {ID}", "replay", "replay delivery_3 --dead-since 2h", "replay --dead-since soon", "add"]
)
def test_commands_without_meaning_are_refused(api: ScriptedApi, arguments: str) -> None:
    assert run(api.url, "webhooks", *arguments.split()).exit_code == 2
    assert api.requests == []
