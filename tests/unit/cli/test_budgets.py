"""`headrace budgets`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.command_line import run
from tests.support.scripted_api import ScriptedApi, reply

PATH = "/v1/admin/budgets"
BUDGET: dict[str, Any] = {
    "id": "budget_3", "object": "budget", "project": "shop", "key": None, "end_user": "*", "period": "day",
    "time_zone": "Europe/Berlin", "limit_usd": 1.0, "hard": True, "on_exceed": "reject", "alert_at": [0.8, 1.0],
    "spend_usd": 12.5, "reserved_usd": 0.000125, "remaining_usd": None, "starts_at": None, "resets_at": None,
    "created_at": "2026-11-30T12:00:00Z",
}  # fmt: skip


def test_budgets_are_listed_with_what_is_left(api: ScriptedApi) -> None:
    of_key = {**BUDGET, "id": "budget_4", "key": "key_12", "end_user": None, "period": "total", "remaining_usd": -2.0}
    page = {
        "object": "list",
        "data": [BUDGET, of_key],
        "has_more": False,
        "first_id": "budget_3",
        "last_id": "budget_4",
    }
    api.on(f"GET {PATH}", reply(page))
    result = run(api.url, "budgets", "--project", "shop")
    assert result.exit_code == 0, result.stderr
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["BUDGET", "PROJECT", "OF", "LIMIT", "SPENT", "RESERVED", "LEFT", "RESETS"]
    assert first.split("  ")[0] == "budget_3"
    for shown in ("each end user", "$1.00 a day", "$12.50", "$0.000125"):
        assert shown in first
    for shown in ("key_12", "in total", "$-2.00"):
        assert shown in second
    assert "project=shop" in api.requests[0].path


def test_budgets_are_created_and_changed(api: ScriptedApi) -> None:
    api.on(f"POST {PATH}", reply(BUDGET))
    api.on(f"PATCH {PATH}/budget_3", reply(BUDGET))
    arguments = "create shop --limit-usd 1 --period day --time-zone Europe/Berlin --end-user * --soft --alert-at 0.5"
    result = run(api.url, "budgets", *arguments.split(), "--alert-at", "1")
    assert (result.exit_code, result.stdout) == (0, "budget_3  created\n"), result.stderr
    assert api.requests[-1].json == {
        "project": "shop", "limit_usd": 1, "period": "day", "time_zone": "Europe/Berlin", "end_user": "*",
        "hard": False, "alert_at": [0.5, 1],
    }  # fmt: skip
    result = run(api.url, "budgets", "set", "budget_3", "--limit-usd", "2.5", "--hard", "--on-exceed", "hold")
    assert (result.exit_code, result.stdout) == (0, "budget_3  changed\n"), result.stderr
    assert api.requests[-1].json == {"limit_usd": 2.5, "hard": True, "on_exceed": "hold"}


def test_a_budget_is_shown(api: ScriptedApi) -> None:
    api.on(f"GET {PATH}/budget_3", reply({**BUDGET, "remaining_usd": 0.5}))
    result = run(api.url, "budgets", "show", "budget_3", "--end-user", "ann")
    assert result.exit_code == 0, result.stderr
    for shown in ("$1.00 a day, Europe/Berlin", "$0.500000", "80%, 100%", "reject"):
        assert shown in result.stdout
    assert "end_user=ann" in api.requests[0].path


def test_budgets_are_deleted_after_a_question(api: ScriptedApi) -> None:
    api.on(f"DELETE {PATH}/budget_3", reply({"id": "budget_3", "object": "budget.deleted", "deleted": True}))
    assert run(api.url, "budgets", "delete", "budget_3").exit_code == 2, "there is no terminal"
    result = run(api.url, "budgets", "delete", "budget_3", "--yes")
    assert (result.exit_code, result.stdout) == (0, "budget_3  deleted\n"), result.stderr


@pytest.mark.parametrize(
    "arguments", ["set budget_3", "create shop --limit-usd 1 --period year", "create shop --period day"]
)
def test_commands_without_meaning_are_refused(api: ScriptedApi, arguments: str) -> None:
    assert run(api.url, "budgets", *arguments.split()).exit_code == 2
    assert api.requests == []
