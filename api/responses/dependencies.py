"""FastAPI dependencies of responses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from api.http.dependencies import resource
from api.responses.service import ResponseService

Responses = Annotated[ResponseService, Depends(resource(ResponseService))]
