"""Parses and validates the lines of a batch's input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from api.batches.batch import LineError
from api.batches.endpoints import ENDPOINTS
from api.batches.jsonl_reader import Line
from api.batches.line_jobs import BatchJob
from api.http.json_body import check_shape, loads_large
from api.http.members import MemberReader, Shape, fitting
from api.http.validation import describe
from shared.config.models.loader import Registry
from shared.domain.errors import HeadraceError, InvalidRequest
from shared.domain.priorities import BATCH_PRIORITY
from shared.domain.request import unicode_text
from shared.runtime.offload import INLINE_BYTES

MAX_CUSTOM_ID = 512


class RequestLine(BaseModel):
    """A line. `parse` validates the values."""

    custom_id: Any
    method: Any
    url: Any
    body: dict[str, Any]


_FIELDS = tuple(RequestLine.model_fields)
_SHAPE = Shape(RequestLine)


class LineRejected(HeadraceError):
    """A line is not a valid request. `custom_id` is None if it cannot be read, `is_utf8` False if it is not text."""

    def __init__(self, error: LineError, custom_id: str | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.custom_id = custom_id
        self.is_utf8 = True


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line's request: the client's id for it, and its job."""

    custom_id: str
    job: BatchJob


@dataclass(frozen=True, slots=True)
class LineContent:
    """A line's request without its validation. What cannot be read is None. `ignored`: paths of ignored members."""

    custom_id: str | None
    body: dict[str, Any] | None
    ignored: tuple[str, ...] = ()


def parse(
    line: Line, url: str, members: MemberReader, registry: Registry | None = None, *, counted: bool = False
) -> BatchRequest:
    """Parse a line of a batch for the endpoint `url`. With a registry, the model or route must exist.

    `counted`: ignored members count in the metrics.

    Raises:
        LineRejected: the line is invalid; its `error` names the parameter.
    """
    fields = _fields(line)
    custom_id = _custom_id(fields)

    def rejected(code: str, message: str, param: str | None) -> LineRejected:
        return _rejected(line, code, message, param, custom_id)

    try:
        members.read(_SHAPE, fields, counted=counted)
    except InvalidRequest as error:
        raise rejected("unknown_parameter", error.message, error.param) from None
    for name in _FIELDS:
        if name not in fields:
            raise rejected("missing_required_parameter", f"{name}: this field is required", name)
    if custom_id is None:
        raise rejected(
            "invalid_custom_id", f"custom_id must be a string of 1 to {MAX_CUSTOM_ID} characters.", "custom_id"
        )
    if fields["method"] != "POST":
        raise rejected("invalid_method", "method must be POST.", "method")
    if fields["url"] != url:
        raise rejected("invalid_url", f"url must be the batch's endpoint, {url}.", "url")
    if not isinstance(fields["body"], dict):
        raise rejected("invalid_request", "body must be an object.", "body")
    try:
        job = ENDPOINTS[url].job(members.read(ENDPOINTS[url].shape, fields["body"], counted=counted).body)
    except ValidationError as error:
        message, param = describe(error.errors(include_url=False))
        raise rejected("invalid_request", message, f"body.{param}" if param else "body") from None
    except InvalidRequest as error:
        param = error.param
        raise rejected("invalid_request", error.message, f"body.{param}" if param else "body") from None
    if registry is not None and not registry.may_be_requested(job.model):
        raise rejected("model_not_found", f"The model `{job.model}` does not exist.", "body.model")
    generate = job.request.model_copy(update={"priority": BATCH_PRIORITY})
    return BatchRequest(
        custom_id, BatchJob(line.number, job.model, generate, job.metadata, job.end_user, options=job.options)
    )


def content_of(line: Line, url: str, members: MemberReader) -> LineContent:
    """Read a line, which may be invalid, without validating its request."""
    try:
        fields = _fields(line)
    except LineRejected:
        return LineContent(None, None)
    custom_id, body = _custom_id(fields), fields.get("body")
    if not isinstance(body, dict):
        return LineContent(custom_id, None)
    try:
        envelope = members.read(_SHAPE, fields, counted=False)
        reading = members.read(ENDPOINTS[url].shape, body, counted=False)
    except InvalidRequest:
        return LineContent(custom_id, None)
    return LineContent(custom_id, reading.body, fitting(envelope.ignored + reading.ignored))


def _custom_id(fields: dict[str, Any]) -> str | None:
    given = fields.get("custom_id")
    if not (isinstance(given, str) and 0 < len(given) <= MAX_CUSTOM_ID):
        return None
    try:
        return unicode_text(given)
    except ValueError:
        return None


def _fields(line: Line) -> dict[str, Any]:
    if line.data is None:
        raise _rejected(line, "line_too_long", "This line exceeds the maximum size of a request.")
    try:
        fields = _loads(line.data)
    except InvalidRequest as error:
        raise _rejected(line, "invalid_json_line", error.message) from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        rejected = _rejected(line, "invalid_json_line", f"This line is not valid JSON: {reason}.")
        rejected.is_utf8 = _is_utf8(line.data)
        raise rejected from None
    if not isinstance(fields, dict):
        raise _rejected(line, "invalid_json_line", "This line is not a JSON object.")
    return fields


def _loads(data: bytes) -> Any:
    value = orjson.loads(data) if len(data) <= INLINE_BYTES else loads_large(data.decode())
    check_shape(data, value)
    return value


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _rejected(
    line: Line, code: str, message: str, param: str | None = None, custom_id: str | None = None
) -> LineRejected:
    # Messages may quote the line and are stored, so they are truncated and made encodable.
    error = LineError(code, message[:1000], line.number, param)
    return LineRejected(replace(error, message=error.message.encode("utf-8", "replace").decode()), custom_id)
