"""`headrace usage`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.command_line import run
from tests.support.scripted_api import Response, ScriptedApi, refusal, reply


def sums(**more: Any) -> dict[str, Any]:
    return {
        "requests": 1200, "cached_requests": 0, "attempts": 1201, "input_tokens": 90000, "cached_input_tokens": 45000,
        "cache_write_tokens": 0, "output_tokens": 18000, "reasoning_tokens": 0, "total_tokens": 108000,
        "cached_input_share": 0.5, "cached_request_share": 0, "cost": 0.0193, "charge": 12.5, "saved": 0, "unpriced": 0,
        **more,
    }  # fmt: skip


def page(*items: dict[str, Any], next_page: str | None = None) -> Any:
    return reply({"data": list(items), "has_more": next_page is not None, "next_page": next_page})


def test_usage_is_shown_by_its_groups(api: ScriptedApi) -> None:
    api.on("GET /v1/usage", page(sums(day="2026-11-01", user="ann"), sums(day="2026-11-02", user=None, cost=None)))
    result = run(api.url, "usage", "--by", "day", "-b", "user", "--start", "2026-11-01", "--time-zone", "Europe/Berlin")
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["DAY", "USER", "REQUESTS", "INPUT", "CACHED", "OUTPUT", "COST", "CHARGE", "SAVED"]
    assert first.split() == ["2026-11-01", "ann", "1,200", "90,000", "50", "%", "18,000", "$0.01930", "$12.50", "$0.00"]
    assert second.split()[1] == "-"
    assert second.split()[-3:] == ["-", "$12.50", "$0.00"]
    query = parse_qs(urlsplit(api.requests[0].path).query)
    assert query == {
        "group_by": ["day", "user"], "time_zone": ["Europe/Berlin"], "start": ["2026-11-01"], "limit": ["100"],
    }  # fmt: skip


def test_an_engine_that_is_not_known_is_called_unknown(api: ScriptedApi) -> None:
    api.on("GET /v1/usage", page(sums(engine="vllm"), sums(engine=None)))
    header, *rows = run(api.url, "usage", "--by", "engine").stdout.splitlines()
    assert header.split()[0] == "ENGINE"
    assert [row.split()[0] for row in rows] == ["vllm", "unknown"]


def test_usage_is_read_page_by_page(api: ScriptedApi) -> None:
    first, second = sums(day="2026-11-01"), sums(day="2026-11-02")
    api.on("GET /v1/usage", page(first, next_page="page_1"), page(second))
    result = run(api.url, "usage", "--all", "--json")
    assert [json.loads(line)["day"] for line in result.stdout.splitlines()] == ["2026-11-01", "2026-11-02"]
    assert "page=page_1" in api.requests[1].path
    api.on("GET /v1/usage", page(first, next_page="page_1"))
    result = run(api.url, "usage", "--limit", "1")
    assert "limit=1" in api.requests[-1].path
    assert "There are more rows" in result.stderr


def test_unpriced_usage_is_pointed_out(api: ScriptedApi) -> None:
    api.on("GET /v1/usage", page(sums(day="2026-11-01", unpriced=3)))
    assert "3 attempts have no price" in run(api.url, "usage").stderr


def test_usage_as_csv(api: ScriptedApi) -> None:
    api.on("GET /v1/usage", Response(b"day,charge\r\n2026-11-01,12.5\r\n", 200, {"Content-Type": "text/csv"}))
    result = run(api.url, "usage", "--csv", "--project", "shop")
    assert result.stdout.split() == ["day,charge", "2026-11-01,12.5"]
    query = parse_qs(urlsplit(api.requests[0].path).query)
    assert (query["format"], query["project"]) == (["csv"], ["shop"])


def test_statement(api: ScriptedApi) -> None:
    line = {"model": "smollm2", "service_tier": "default", "batch": True, **sums()}
    found = {"project": "shop", "month": "2026-11", "total": sums(), "lines": [line], "complete": False}
    api.on("GET /v1/usage/statement", reply(found))
    result = run(api.url, "usage", "statement", "2026-11")
    _, shown, total = result.stdout.splitlines()
    assert shown.split()[:3] == ["smollm2", "default", "yes"]
    assert total.split()[0] == "total"
    assert "The statement of shop for 2026-11 is not complete yet." in result.stderr


def test_usage_of_another_project_is_refused(api: ScriptedApi) -> None:
    api.on(
        "GET /v1/usage", refusal(403, "project: this API key may read the usage of its own project only.", "project")
    )
    result = run(api.url, "usage", "--project", "other")
    assert (result.exit_code, result.stdout) == (4, "")


def test_cost_of_a_job(api: ScriptedApi) -> None:
    times = {"queued_ms": 1, "ttft_ms": 20, "total_ms": 300}
    found = {
        "id": "job_1", "model": "smollm2", "status": "completed", "priority": 3, "created_at": "2026-01-01T00:00:00Z",
        "timings": times, "attempts": [], "error": None, "metadata": {}, "output": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.00123},
    }  # fmt: skip
    api.on("GET /v1/jobs/job_1", reply(found), reply(found | {"usage": {"prompt_tokens": 3, "completion_tokens": 5}}))
    assert "$0.001230" in run(api.url, "job", "job_1").stdout
    assert "Cost" not in run(api.url, "job", "job_1").stdout


def test_savings(api: ScriptedApi) -> None:
    saved = {"requests": 700, "prompt_tokens": 300000, "cached_tokens": 120000, "completion_tokens": 110000}
    none = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "models": []}
    found = {
        "routes": [
            {
                "route": "auto",
                "baseline": {"model": "large"},
                "saved": saved,
                "saved_usd": -0.25,
                "note": "No model reports cached tokens.",
            },
            {"route": "gone", "baseline": None, "saved": None, "saved_usd": None, "note": None},
        ],
        "response_cache": saved | {"saved_usd": 12.5},
        "coalescing": none,
        "prompt_cache": {"cached_tokens": 150000, "saved_usd": None},
    }
    api.on("GET /v1/savings", reply(found))
    result = run(api.url, "usage", "savings", "--days", "30")
    assert "days=30" in api.requests[-1].path
    header, *lines = [line.split() for line in result.stdout.splitlines()]
    assert header == ["BY", "INSTEAD", "OF", "REQUESTS", "INPUT", "OUTPUT", "SAVED"]
    assert lines == [
        ["route", "auto", "large", "700", "300,000", "110,000", "-$0.2500"],
        ["route", "gone", "-", "-", "-", "-", "-"],
        ["response", "cache", "-", "700", "300,000", "110,000", "$12.50"],
        ["prompt", "caches", "-", "-", "150,000", "-", "-"],
    ]
    assert "No model reports cached tokens." in result.stderr
    api.on(
        "GET /v1/savings", reply({**found, "routes": [], "response_cache": none, "prompt_cache": {"cached_tokens": 0}})
    )
    assert "Nothing was saved." in run(api.url, "usage", "savings").stderr
