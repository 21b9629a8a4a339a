"""FastAPI dependencies of batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.batches.service import BatchService


async def batch_service(request: Request) -> BatchService:
    batches: BatchService = request.app.state.resources.batches
    return batches


Batches = Annotated[BatchService, Depends(batch_service)]
