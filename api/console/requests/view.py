"""What the pages of the request log show. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.console.filters import plural
from api.console.jobs.job.answer import SHOWN_MESSAGES, CallView, Text, text_of
from api.console.jobs.view import STATUSES
from api.keys.store import format_id
from api.request_log.bodies import Body
from api.requests.store import Feedback, LoggedRequest
from shared.domain.job import JobStatus

# What the list says about the body of a request, by its state.
_BODIES = {
    "kept": ("kept", "good"),
    "pending": ("not written yet", "info"),
    "lost": ("lost", "bad"),
    "deleted": ("deleted", "plain"),
    "erased": ("erased", "plain"),
    "expired": ("expired", "plain"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the list. `notes`: texts and kinds of badges."""

    id: str
    status: str
    kind: str
    title: str
    model: str
    route: str | None
    project: str | None
    user: str | None
    tokens: int
    total_ms: float
    ended_at: datetime
    is_batch: bool
    refused: str | None
    feedback: Sequence[str]
    scores: Sequence[str]
    body: str
    body_kind: str


@dataclass(frozen=True, slots=True)
class MessageView:
    """A message of the request, or one of the answers. `parts`: descriptions of its images and files."""

    role: str
    text: Text
    calls: Sequence[CallView]
    parts: Sequence[str]


@dataclass(frozen=True, slots=True)
class ContentView:
    """What was asked and answered. `more`: messages in the middle that are left out."""

    messages: Sequence[MessageView]
    more: int
    answers: Sequence[MessageView]
    level: str
    redactions: str
    error: str | None


def row_of(request: LoggedRequest) -> Row:
    """A line of the list."""
    status, kind = _status(request.status)
    body, body_kind = _BODIES.get(request.body, (f"level {request.level}", "plain"))
    return Row(
        id=request.job_id,
        status=status,
        kind=kind,
        title=request.error_code or "",
        model=request.model,
        route=request.requested_model if request.requested_model != request.model else None,
        project=request.project,
        user=request.end_user,
        tokens=(request.input_tokens or 0) + (request.output_tokens or 0),
        total_ms=1000 * (request.ended_at - request.created_at).total_seconds(),
        ended_at=request.ended_at,
        is_batch=request.batch_id is not None,
        refused=refusal(request) if request.refused else None,
        feedback=[feedback_text(one) for one in request.feedback],
        scores=[f"{one.rubric}: {one.score:g}" for one in request.scores],
        body=body,
        body_kind=body_kind,
    )


def facts(request: LoggedRequest, key_name: str) -> list[tuple[str, str]]:
    """What the page of a request says about it: names and values."""
    values = [
        ("Project", request.project),
        ("Key", f"{key_name} ({format_id(request.key_id)})"),
        ("End user", request.end_user),
        ("Model", request.model),
        ("Requested", request.requested_model if request.requested_model != request.model else None),
        ("Purpose", request.kind),
        ("Conversation", request.conversation),
        ("Batch", request.batch_id),
        ("HTTP request", request.request_id),
        ("Error", request.error_code),
        ("Tokens", f"{plural(request.input_tokens or 0, 'token')} in, {request.output_tokens or 0:,} out"),
        ("Refused", refusal(request)),
        ("Answer", "of another job: no model ran" if request.answered else None),
        ("Log level", request.level),
    ]
    return [(name, value) for name, value in values if value]


def content_view(body: Body) -> ContentView:
    """The content of a request. It may be large: call it in a thread then."""
    request = body.request
    messages: Sequence[Mapping[str, Any]] = request.get("messages") or ()
    shown = messages
    if len(messages) > SHOWN_MESSAGES:
        half = SHOWN_MESSAGES // 2
        shown = [*messages[:half], *messages[-half:]]
    views = [_message(message) for message in shown]
    if (prompt := request.get("prompt")) is not None:
        views = [MessageView("prompt", text_of(prompt if isinstance(prompt, str) else str(prompt)), (), ())]
    return ContentView(
        messages=views,
        more=len(messages) - len(shown),
        answers=[_answer(choice) for choice in body.output],
        level=body.level.value,
        redactions=", ".join(f"{count} {kind}" for kind, count in body.redactions.items()),
        error=body.error_message,
    )


def refusal(request: LoggedRequest) -> str | None:
    """Whether the model has refused to answer, and who says so; None if that is not known."""
    if request.refused is None:
        return None
    said_by = f" (says the {request.refusal_source})" if request.refusal_source else ""
    return f"{'yes' if request.refused else 'no'}{said_by}"


def feedback_text(feedback: Feedback) -> str:
    """A metric and its value: `rating: up`."""
    value = feedback.value
    shown = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return f"{feedback.metric}: {shown}"


def _status(text: str) -> tuple[str, str]:
    try:
        return STATUSES[JobStatus(text)]
    except (ValueError, KeyError):
        return text, "plain"  # of a newer version


def _message(message: Mapping[str, Any]) -> MessageView:
    content = message.get("content")
    texts, parts = content, list[str]()
    if isinstance(content, list):
        texts = "\n".join(str(part.get("text")) for part in content if part.get("type") == "text")
        parts = [_described(part) for part in content if part.get("type") != "text"]
    calls = [
        CallView(str(call.get("id")), _function(call, "name"), text_of(_function(call, "arguments")))
        for call in message.get("tool_calls") or ()
    ]
    return MessageView(str(message.get("role")), text_of(str(texts or "")), calls, parts)


def _function(call: Mapping[str, Any], name: str) -> str:
    return str((call.get("function") or {}).get(name) or "")


def _described(part: Mapping[str, Any]) -> str:
    """An image or a file in a line."""
    where = part.get("url") or part.get("file_id") or part.get("media_type") or ""
    return f"{part.get('filename') or part.get('type')}: {where}"[:500]


def _answer(choice: Mapping[str, Any]) -> MessageView:
    calls = [
        CallView(str(call.get("id")), str(call.get("name")), text_of(str(call.get("arguments") or "")))
        for call in choice.get("tool_calls") or ()
    ]
    return MessageView("answer", text_of(str(choice.get("text") or "")), calls, ())
