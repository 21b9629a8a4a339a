"""FastAPI dependencies of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from api.http.dependencies import resource
from api.jobs.admission import Admission
from api.jobs.service import JobService

Jobs = Annotated[JobService, Depends(resource(JobService))]
CurrentAdmission = Annotated[Admission, Depends(resource(Admission))]
