"""The webhook that a request names, in all dialects."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from api.anthropic.schemas import MessagesRequest
from api.batches.schemas import BatchCreate
from api.http.validation import describe
from api.http.webhook_parameters import WebhookParameters
from api.jobs.schemas import JobCreate
from api.openai.schemas import ChatCompletionRequest, CompletionRequest
from api.responses.schemas import ResponseCreate
from shared.domain.request_webhook import RequestWebhook, normal_url, public_url

URL = "https://example.com/hook?token=secret"
MESSAGES = [{"role": "user", "content": "x"}]
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h"}
REQUESTS: list[tuple[type[WebhookParameters], dict[str, Any]]] = [
    (JobCreate, {"model": "m", "prompt": "x"}),
    (ChatCompletionRequest, {"model": "m", "messages": MESSAGES}),
    (CompletionRequest, {"model": "m", "prompt": "x"}),
    (ResponseCreate, {"model": "m", "input": "x"}),
    (MessagesRequest, {"model": "m", "messages": MESSAGES, "max_tokens": 1}),
    (BatchCreate, BATCH),
]
OF_JOBS = [one for one in REQUESTS if one[0] is not BatchCreate]


def problem(schema: type[BaseModel], body: dict[str, Any]) -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    return describe(caught.value.errors(include_url=False))


@pytest.mark.parametrize(("schema", "body"), REQUESTS)
def test_all_requests_can_name_a_webhook(schema: type[WebhookParameters], body: dict[str, Any]) -> None:
    assert schema.model_validate(body).request_webhook is None
    assert schema.model_validate({**body, "webhook": URL}).request_webhook == RequestWebhook(URL)
    event = "batch.completed" if schema is BatchCreate else "job.failed"
    group = f"{event.partition('.')[0]}.*"
    filtered = schema.model_validate({**body, "webhook": URL, "webhook_events_filter": [group, event, group]})
    webhook = filtered.request_webhook
    assert webhook == RequestWebhook(URL, (group, event))
    assert webhook is not None
    assert webhook.stored() == {"url": URL, "events": [group, event]}


@pytest.mark.parametrize(("schema", "body"), REQUESTS)
def test_a_filter_needs_a_webhook(schema: type[WebhookParameters], body: dict[str, Any]) -> None:
    message, param = problem(schema, {**body, "webhook_events_filter": ["*"]})
    assert (message, param) == ("webhook_events_filter requires webhook", "webhook_events_filter")


@pytest.mark.parametrize(("schema", "body"), OF_JOBS)
@pytest.mark.parametrize("event", ["job.started", "batch.completed", "webhook.test", "", "job"])
def test_unknown_events_are_named(schema: type[WebhookParameters], body: dict[str, Any], event: str) -> None:
    message, param = problem(schema, {**body, "webhook": URL, "webhook_events_filter": [event]})
    assert param == "webhook_events_filter"
    assert f"unknown event {event!r}; known are job.completed," in message


def test_a_batch_has_events_of_its_own() -> None:
    message, _ = problem(BatchCreate, {**BATCH, "webhook": URL, "webhook_events_filter": ["job.completed"]})
    assert "known are batch.completed," in message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "https://example.com/hook?…"),
        ("https://example.com:8443/hook", "https://example.com:8443/hook"),
        ("https://user:password@example.com/#fragment", "https://example.com/"),
        ("http://[::1]:80/x?y", "http://[::1]:80/x?…"),
        ("https://example.com:port/", "(not a URL)"),
    ],
)
def test_logs_have_no_secrets_of_a_url(url: str, shown: str) -> None:
    assert public_url(url) == shown


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        (URL, URL),
        ("HTTPS://Hooks.EXAMPLE.com/A?B=C#D", "https://hooks.example.com/A?B=C#D"),
        ("https://EXAMPLE.com:443/Hook", "https://example.com/Hook"),
        ("https://EXAMPLE.com:443", "https://example.com"),
        ("http://EXAMPLE.com:80?A", "http://example.com?A"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("https://[2001:DB8::1]:443/", "https://[2001:db8::1]/"),
        ("https://example.com/a://B:443", "https://example.com/a://B:443"),
        ("Not a URL", "Not a URL"),
        ("://Example", "://Example"),
        ("", ""),
    ],
)
def test_hosts_have_one_spelling(url: str, normal: str) -> None:
    """Deliveries to a host share a queue, which its name identifies."""
    assert normal_url(url) == normal
    if url:
        assert JobCreate.model_validate({"model": "m", "prompt": "x", "webhook": url}).webhook == normal
