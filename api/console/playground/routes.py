"""`/console/playground`: try a prompt, on one model or on two side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from api.console.code import code_of
from api.console.jobs.service import ConsoleJobs
from api.console.page import Page
from api.console.playground.models import Choice, choices
from api.console.playground.request import request_body
from api.console.templates import page_response
from api.console.viewer import CurrentViewer
from api.http.dependencies import CurrentRegistry, resource
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.jobs.dependencies import CurrentAdmission, CurrentContextWindow
from api.jobs.schemas import JobCreate
from api.keys.auth import CurrentPrincipal
from api.keys.principal import Scope
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest

SIDES = 2

router = APIRouter(route_class=JsonRoute)


class CodeRequest(BaseModel):
    """The body of a job, and the headers to send with it."""

    body: dict[str, Any]
    headers: dict[str, str] = Field(default_factory=dict)


@router.get("")
async def playground_page(
    request: Request,
    viewer: CurrentViewer,
    registry: CurrentRegistry,
    context: CurrentContextWindow,
    jobs: Annotated[ConsoleJobs, Depends(resource(ConsoleJobs))],
    job: Annotated[list[str], Query(max_length=SIDES)] = [],  # noqa: B006
) -> Response:
    """The page. `job`: start with the request of this job; of two, the answers are shown side by side.

    The answer of a job of another project, which operators can load, is not shown: it cannot be followed by their key.
    """
    found = [await jobs.job(viewer.project_id, job_id) for job_id in job]
    own = viewer.principal.project_id
    loaded = [{"id": one.id if one.owner.project_id == own else None, "body": request_body(one)} for one in found]
    models: list[Choice] = choices(registry, context.length)
    return page_response(
        request.scope,
        "playground/playground.html",
        models=models,
        config={
            "models": [asdict(model) for model in models],
            "loaded": loaded,
        },
        floor=viewer.principal.priority_floor,
    )


@router.post("/tokens")
async def count_tokens(
    body: JobCreate,
    principal: CurrentPrincipal,
    admission: CurrentAdmission,
    context: CurrentContextWindow,
    work: CurrentBodyWork,
) -> Response:
    """The tokens of the prompt of a job that is still being written. No job is created, unlike by `count_tokens`."""
    generate: GenerateRequest = await work.run(body.generate_request)
    new = NewJob(owner=principal.owner, model=body.model, priority=body.priority, request=generate, metadata={})
    model = await admission.model_of(principal, new)
    tokens = await admission.count_tokens(model, generate, principal.project_id)
    if tokens is None:  # only the engine can count, and it has other things to do than to count as people type
        tokens = context.estimate(model, generate, principal.project_id)
    return JSONResponse(
        {"tokens": tokens.number, "estimated": tokens.estimated, "model": model, "limit": context.length(model)}
    )


@router.post("/code")
async def code(body: CodeRequest, _: CurrentPrincipal) -> Response:
    """The code of a request in three languages."""
    return JSONResponse(asdict(code_of(body.body, body.headers)))


PAGE = Page(path="playground", title="Playground", router=router, key="p", scope=Scope.INFERENCE)
