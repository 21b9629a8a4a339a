"""FastAPI dependencies of batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from api.batches.service import BatchService
from api.http.dependencies import resource

Batches = Annotated[BatchService, Depends(resource(BatchService))]
