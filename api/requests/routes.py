"""`/v1/requests`: what was asked and answered, as far as the request log keeps it."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from api.http.large_json import JsonBody, json_response
from api.http.openapi import NOT_FOUND, headers
from api.http.pagination import After, Limit, fetch_page, number_after
from api.http.parquet import PARQUET
from api.keys.auth import AnyPrincipal
from api.keys.principal import Scope
from api.request_log.bodies import Body
from api.requests.dependencies import (
    LOG_ERRORS,
    CurrentExports,
    CurrentExportStore,
    CurrentLoggedRequests,
    CurrentQuery,
)
from api.requests.export import EXPORT_HEADER, LEVEL_HEADER, ExportOptions
from api.requests.export_store import format_export_id, parse_export_id
from api.requests.lines import ExportFormat
from api.requests.sampling import MAX_COUNT, MAX_SEED, read_sample
from api.requests.schemas import ExportList, ExportView, OpenedRequest, RequestList
from shared.domain.log_level import LogLevel

_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line of JSON for each request, in the shape of OpenAI's chat completions, or Parquet. If the"
        " connection is closed before the end, the file is incomplete.",
        "content": {
            "application/x-ndjson": {
                **_TEXT,
                "example": '{"messages": [{"role": "user", "content": "Name a river."}, {"role": "assistant",'
                ' "content": "The Rhine."}], "model": "smollm2", "metadata": {"job_id": "job_01a22a89f246739a8c44c5974'
                '5894a6a", "headrace": {"export": "export_12", "redaction_level": "redacted", "rows": 1}}}\n',
            },
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
        },
        **headers(EXPORT_HEADER, LEVEL_HEADER),
    }
}

router = APIRouter(prefix="/v1/requests", tags=["requests"])


@router.get("", response_model=RequestList, responses=LOG_ERRORS)
async def list_requests(
    principal: AnyPrincipal,
    requests: CurrentLoggedRequests,
    query: CurrentQuery,
    limit: Limit = 20,
    after: After = None,
) -> RequestList:
    """List requests that have ended, newest first, without what was asked and answered.

    Of the key's project, which needs the scope `logs`, or of all projects with the scope `admin`.
    """
    return RequestList.of_page(await requests.page(principal, query, limit=limit, after=after))


@router.get("/export", response_class=Response, responses={**LOG_ERRORS, **_FILES})
async def export_requests(
    principal: AnyPrincipal,
    requests: CurrentLoggedRequests,
    exports: CurrentExports,
    query: CurrentQuery,
    format: Annotated[ExportFormat, Query(description="`parquet` needs pyarrow on the server.")] = "jsonl",  # noqa: A002
    level: Annotated[
        Literal["redacted", "full"],
        Query(
            description="At most this much is exported: bodies that are kept in full are redacted for `redacted`. What"
            " is kept redacted remains so."
        ),
    ] = "redacted",
    sample: Annotated[
        str | None,
        Query(
            max_length=32,
            description=f"Export a random part only: a number of requests up to {MAX_COUNT}, or a fraction such as"
            " 0.05.",
        ),
    ] = None,
    seed: Annotated[
        int, Query(ge=0, le=MAX_SEED, description="Another seed draws another sample; the same one, the same.")
    ] = 0,
) -> Response:
    """Export the requests whose bodies are kept, newest first, as a set for evaluations.

    The file is written while it is sent. Exports are listed, and recorded in the audit log.
    """
    options = ExportOptions(format, LogLevel(level), None if sample is None else read_sample(sample), seed)
    return await exports.start(principal, await requests.filters(principal, query), options)


@router.get("/exports", responses=LOG_ERRORS)
async def list_exports(
    principal: AnyPrincipal,
    exports: CurrentExportStore,
    limit: Limit = 20,
    after: After = None,
) -> ExportList:
    """List the exports of the key's project, or all with the scope `admin`, newest first."""
    principal.require(Scope.LOGS)
    after_id = number_after(after, "export", parse_export_id)
    page = await fetch_page(limit, lambda count: exports.page(principal.visible_project, limit=count, after=after_id))
    return ExportList.of(page, ExportView.of, lambda export: format_export_id(export.id))


@router.get("/{job_id}", response_model=OpenedRequest, responses={**LOG_ERRORS, **NOT_FOUND})
async def get_request(job_id: str, principal: AnyPrincipal, requests: CurrentLoggedRequests) -> Response:
    """Get a request with what was asked and answered, or the reason why that is missing.

    That the key has read it is recorded in the audit log.
    """
    row, body = await requests.open(principal, job_id)
    view = OpenedRequest.of_body(row, body)
    shown = JsonBody(partial(view.model_dump, mode="json"), body.size if isinstance(body, Body) else 0)
    return await json_response(shown, headers={"Cache-Control": "no-store"})
