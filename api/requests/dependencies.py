"""FastAPI dependencies of the request log, and what its operations respond with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends

from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.openapi import ERRORS
from api.requests.export import Exports
from api.requests.export_store import ExportStore
from api.requests.query import RequestQuery, request_query
from api.requests.service import LoggedRequests

CurrentLoggedRequests = Annotated[LoggedRequests, Depends(resource(LoggedRequests))]
CurrentExports = Annotated[Exports, Depends(resource(Exports))]
CurrentExportStore = Annotated[ExportStore, Depends(resource(ExportStore))]
CurrentQuery = Annotated[RequestQuery, Depends(request_query)]
LOG_ERRORS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    403: {
        "model": ErrorResponse,
        "description": "The API key has no `logs` scope, or no `admin` scope for other projects.",
    },
}
