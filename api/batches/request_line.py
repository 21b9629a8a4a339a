"""What a line of a batch asks for, checked as the endpoint that it is meant for checks it."""

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
    """A line asks for nothing that can be run."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line's request: the client's name for it, and the job that it becomes."""

    custom_id: str
    job: BatchJob


def parse(line: Line, url: str, registry: Registry | None = None) -> BatchRequest:
    """The request of a line of a batch for `url`. Without a registry its model is not looked for.

    Raises:
        LineRejected: says why, and of which parameter.
    """
    fields = _fields(line)
    custom_id = fields["custom_id"]
    if not (isinstance(custom_id, str) and 0 < len(custom_id) <= MAX_CUSTOM_ID):
        raise _refused(
            line, "invalid_custom_id", f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters.", "custom_id"
        )
    if fields["method"] != "POST":
        raise _refused(line, "invalid_method", "method must be POST.", "method")
    if fields["url"] != url:
        raise _refused(line, "invalid_url", f"url must be the batch's endpoint, {url}.", "url")
    body = fields["body"]
    if not isinstance(body, dict):
        raise _refused(line, "invalid_request", "body must be an object.", "body")
    try:
        job = ENDPOINTS[url].job(body)
    except ValidationError as error:
        message, param = describe(error.errors(include_url=False))
        raise _refused(line, "invalid_request", message, f"body.{param}" if param else "body") from None
    except InvalidRequest as error:
        param = error.param
        raise _refused(line, "invalid_request", error.message, f"body.{param}" if param else "body") from None
    if registry is not None and job.model not in registry:
        raise _refused(line, "model_not_found", f"The model `{job.model}` does not exist.", "body.model")
    generate = job.request.model_copy(update={"priority": BATCH_PRIORITY})
    return BatchRequest(custom_id, BatchJob(line.number, job.model, generate, job.metadata, job.end_user))


def said(line: Line) -> tuple[str, dict[str, Any]]:
    """The client's name for a line that was found valid before, and its body."""
    assert line.data is not None
    found = orjson.loads(line.data)
    return found["custom_id"], found["body"]


def _fields(line: Line) -> dict[str, Any]:
    if line.data is None:
        raise _refused(line, "line_too_long", "This line is longer than a request may be.")
    try:
        found = orjson.loads(line.data)
    except orjson.JSONDecodeError as error:
        raise _refused(line, "invalid_json_line", f"This line is not valid JSON: {error}.") from None
    try:
        check_shape(line.data, found)
    except InvalidRequest as error:
        raise _refused(line, "invalid_json_line", error.message) from None
    if not isinstance(found, dict):
        raise _refused(line, "invalid_json_line", "This line is not a JSON object.")
    for name in FIELDS:
        if name not in found:
            raise _refused(line, "missing_required_parameter", f"{name}: this field is required", name)
    for name in found:
        if name not in FIELDS:
            shown = name[:64]
            raise _refused(line, "unknown_parameter", f"{shown}: this parameter is not known or not supported", shown)
    return found


def _refused(line: Line, code: str, message: str, param: str | None = None) -> LineRejected:
    # Messages may quote the line, and are kept.
    error = LineError(code, message[:1000], line.number, param)
    return LineRejected(replace(error, message=error.message.encode("utf-8", "replace").decode()))
