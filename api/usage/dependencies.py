"""FastAPI dependencies of usage, and what its operations respond with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query

from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.openapi import ERRORS
from api.usage.service import UsageService

CurrentUsage = Annotated[UsageService, Depends(resource(UsageService))]
USAGE_ERRORS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    403: {"model": ErrorResponse, "description": "Usage of other projects needs a key with the scope `admin`."},
}
TimeZone = Annotated[
    str, Query(description="The name of the time zone in which days and months begin, such as `Europe/Berlin`.")
]
