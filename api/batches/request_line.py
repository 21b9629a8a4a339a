"""Parses and validates the lines of a batch's input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import ValidationError

from api.batches.batch import LineError
from api.batches.endpoints import ENDPOINTS
from api.batches.jsonl_reader import Line
from api.batches.store import BatchJob
from api.http.json_body import check_shape
from api.http.validation import describe
from shared.config.models.loader import Registry
from shared.domain.errors import HeadraceError, InvalidRequest
from shared.domain.priorities import BATCH_PRIORITY

MAX_CUSTOM_ID = 512
FIELDS = ("custom_id", "method", "url", "body")


class LineRejected(HeadraceError):
    """A line is not a valid request."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line's request: the client's id for it, and its job."""

    custom_id: str
    job: BatchJob


def parse(line: Line, url: str, registry: Registry | None = None) -> BatchRequest:
    """Parse a line of a batch for the endpoint `url`. With a registry, the model must exist.

    Raises:
        LineRejected: the line is invalid; its `error` names the parameter.
    """
    fields = _fields(line)
    custom_id = fields["custom_id"]
    if not (isinstance(custom_id, str) and 0 < len(custom_id) <= MAX_CUSTOM_ID):
        raise _rejected(
            line, "invalid_custom_id", f"custom_id must be a string of 1 to {MAX_CUSTOM_ID} characters.", "custom_id"
        )
    if fields["method"] != "POST":
        raise _rejected(line, "invalid_method", "method must be POST.", "method")
    if fields["url"] != url:
        raise _rejected(line, "invalid_url", f"url must be the batch's endpoint, {url}.", "url")
    body = fields["body"]
    if not isinstance(body, dict):
        raise _rejected(line, "invalid_request", "body must be an object.", "body")
    try:
        job = ENDPOINTS[url].job(body)
    except ValidationError as error:
        message, param = describe(error.errors(include_url=False))
        raise _rejected(line, "invalid_request", message, f"body.{param}" if param else "body") from None
    except InvalidRequest as error:
        param = error.param
        raise _rejected(line, "invalid_request", error.message, f"body.{param}" if param else "body") from None
    if registry is not None and job.model not in registry:
        raise _rejected(line, "model_not_found", f"The model `{job.model}` does not exist.", "body.model")
    generate = job.request.model_copy(update={"priority": BATCH_PRIORITY})
    return BatchRequest(custom_id, BatchJob(line.number, job.model, generate, job.metadata, job.end_user))


def custom_id_and_body(line: Line) -> tuple[str, dict[str, Any]]:
    """Return the custom_id and the body of a line that has passed validation."""
    assert line.data is not None
    fields = orjson.loads(line.data)
    return fields["custom_id"], fields["body"]


def _fields(line: Line) -> dict[str, Any]:
    if line.data is None:
        raise _rejected(line, "line_too_long", "This line exceeds the maximum size of a request.")
    try:
        fields = orjson.loads(line.data)
    except orjson.JSONDecodeError as error:
        raise _rejected(line, "invalid_json_line", f"This line is not valid JSON: {error}.") from None
    try:
        check_shape(line.data, fields)
    except InvalidRequest as error:
        raise _rejected(line, "invalid_json_line", error.message) from None
    if not isinstance(fields, dict):
        raise _rejected(line, "invalid_json_line", "This line is not a JSON object.")
    for name in FIELDS:
        if name not in fields:
            raise _rejected(line, "missing_required_parameter", f"{name}: this field is required", name)
    for name in fields:
        if name not in FIELDS:
            param = name[:64]
            raise _rejected(line, "unknown_parameter", f"{param}: this parameter is unknown or not supported", param)
    return fields


def _rejected(line: Line, code: str, message: str, param: str | None = None) -> LineRejected:
    # Messages may quote the line and are stored, so they are truncated and made encodable.
    error = LineError(code, message[:1000], line.number, param)
    return LineRejected(replace(error, message=error.message.encode("utf-8", "replace").decode()))
