"""FastAPI dependencies of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.context.window import ContextWindow
from api.http.dependencies import CurrentStreamSettings, resource
from api.http.submit_headers import Submission
from api.jobs.admission import Admission
from api.jobs.replay import Replays
from api.jobs.search import JobSearch
from api.jobs.service import JobService
from api.jobs.sync_call import SyncCall

Jobs = Annotated[JobService, Depends(resource(JobService))]
Search = Annotated[JobSearch, Depends(resource(JobSearch))]
CurrentReplays = Annotated[Replays, Depends(resource(Replays))]
CurrentContextWindow = Annotated[ContextWindow, Depends(resource(ContextWindow))]
CurrentAdmission = Annotated[Admission, Depends(resource(Admission))]


async def sync_call(request: Request, jobs: Jobs, submission: Submission, settings: CurrentStreamSettings) -> SyncCall:
    return SyncCall(request, jobs, submission, settings)


CurrentSyncCall = Annotated[SyncCall, Depends(sync_call)]
