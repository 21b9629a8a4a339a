"""The OpenAPI description."""

from __future__ import annotations

from typing import Any

import pytest

from api.app import create_app
from api.http.openapi import HEADERS
from api.settings import ApiSettings
from shared.domain.decisions import CacheDecision, ContextDecision, Decisions, RouteDecision, TokenLimitsDecision

SUBMITS = ("/v1/jobs", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
ALL_DECISIONS = Decisions(
    route=RouteDecision(route="auto", rule="complexity", score=0.5),
    cache=CacheDecision(outcome="HIT", age_s=5),
    context=ContextDecision(strategy="sliding_window", note="no summary"),
    token_limits=TokenLimitsDecision(max_tokens=10),
    tokens_estimated=True,
)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(ApiSettings(database_url="postgresql://unused", redis_url="redis://unused")).openapi()


@pytest.mark.parametrize("path", SUBMITS)
def test_responses_to_submits_declare_the_headers_of_all_decisions(document: dict[str, Any], path: str) -> None:
    responses = document["paths"][path]["post"]["responses"]
    assert len(ALL_DECISIONS.headers()) == 6, "a new header belongs to `HEADERS` and to this test"
    for status in responses.keys() & {"200", "202"}:
        assert ALL_DECISIONS.headers().keys() <= responses[status]["headers"].keys()


def test_the_reference_begins_with_the_submit_of_a_job(document: dict[str, Any]) -> None:
    """Readers meet the operations in the order of the description."""
    operations = [f"{method} {path}" for path, methods in document["paths"].items() for method in methods]
    assert operations[0] == "post /v1/jobs"
    assert operations.index("get /v1/jobs/{job_id}") < operations.index("post /v1/chat/completions")


def test_pages_are_not_part_of_the_schema(document: dict[str, Any]) -> None:
    assert not {"/", "/docs", "/static"} & document["paths"].keys()


def test_each_header_is_described_once(document: dict[str, Any]) -> None:
    assert document["components"]["headers"] == HEADERS
    declared = {
        name: header
        for operations in document["paths"].values()
        for operation in operations.values()
        for response in operation["responses"].values()
        for name, header in response.get("headers", {}).items()
    }
    assert declared == {name: {"$ref": f"#/components/headers/{name}"} for name in HEADERS}
