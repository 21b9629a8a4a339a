"""FastAPI dependencies of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.jobs.service import JobService


async def job_service(request: Request) -> JobService:
    jobs: JobService = request.app.state.resources.jobs
    return jobs


Jobs = Annotated[JobService, Depends(job_service)]
