"""`headrace limits`."""

from __future__ import annotations

import json
from typing import Any

from tests.support.command_line import run
from tests.support.scripted_api import ScriptedApi, reply

LIMIT: dict[str, Any] = {
    "id": "limit_3", "object": "limit", "project": "shop", "key_id": None, "end_user": "*", "model": None,
    "requests_per_minute": 60, "tokens_per_minute": 100_000, "concurrent_jobs": None, "queued_jobs": None,
    "open_streams": None, "mode": "hard", "created_at": "2026-01-01T00:00:00Z", "left": None,
}  # fmt: skip


def test_limits_are_created_and_changed(api: ScriptedApi) -> None:
    api.on("POST /v1/admin/limits", reply(LIMIT))
    api.on("PATCH /v1/admin/limits/limit_3", reply(LIMIT))
    created = run(
        api.url, "limits", "create", "--project", "shop", "--user", "*", "--requests", "60", "--mode", "soft",
    )  # fmt: skip
    assert (created.stdout, created.exit_code) == ("limit_3  created\n", 0), created.stderr
    assert api.requests[-1].json == {"project": "shop", "end_user": "*", "requests_per_minute": 60, "mode": "soft"}
    run(api.url, "limits", "create", "--key", "key_7", "-m", "large", "--open-streams", "5", "--queued-jobs", "9")
    assert api.requests[-1].json == {"key_id": "key_7", "model": "large", "open_streams": 5, "queued_jobs": 9}
    changed = run(api.url, "limits", "set", "limit_3", "--tokens", "none", "--concurrent-jobs", "4")
    assert changed.stdout == "limit_3  changed\n"
    assert api.requests[-1].json == {"tokens_per_minute": None, "concurrent_jobs": 4}
    count = len(api.requests)
    for arguments in (["set", "limit_3"], ["set", "limit_3", "--tokens", "many"], ["create", "--requests", "-1"]):
        assert run(api.url, "limits", *arguments).exit_code == 2
    assert len(api.requests) == count


def test_limits_are_listed_shown_and_deleted(api: ScriptedApi) -> None:
    api.on("GET /v1/admin/limits", reply({"data": [LIMIT], "has_more": False, "last_id": "limit_3"}))
    left = {"requests": {"limit": 60, "remaining": 12, "reset_s": 41.5}}
    api.on("GET /v1/admin/limits/limit_3", reply(LIMIT | {"left": left}))
    api.on("DELETE /v1/admin/limits/limit_3", reply({"id": "limit_3", "object": "limit", "deleted": True}))
    listed = run(api.url, "limits", "list", "--project", "shop")
    assert "project=shop" in api.requests[-1].path
    for cell in ("limit_3", "shop", "*", "60", "100,000", "hard"):
        assert cell in listed.stdout.splitlines()[-1].split()
    assert json.loads(run(api.url, "limits", "list", "--json").stdout) == LIMIT
    shown = run(api.url, "limits", "show", "limit_3").stdout
    assert "12 of 60; full again in 42 s" in shown
    assert "concurrent_jobs" not in shown
    assert run(api.url, "limits", "delete", "limit_3").exit_code == 2, "it needs --yes without a terminal"
    assert run(api.url, "limits", "delete", "limit_3", "--yes").stdout == "limit_3  deleted\n"
