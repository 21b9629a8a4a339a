"""`/console/playground`: try a prompt, on one model or on two side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from api.console.code import code_of
from api.console.jobs.service import ConsoleJobs
from api.console.page import Page
from api.console.playground.models import Choice, choices
from api.console.playground.preview import SIDES, PreviewRequest, TokenCounter
from api.console.playground.request import request_body
from api.console.templates import page_response
from api.console.viewer import CurrentViewer
from api.http.dependencies import CurrentRegistry, resource
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.members import MemberReader
from api.jobs.dependencies import CurrentAdmission, CurrentContextWindow
from api.keys.auth import CurrentPrincipal
from api.keys.principal import Scope

router = APIRouter(route_class=JsonRoute)


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
    models: list[Choice] = choices(registry, context.length, viewer.principal)
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


@router.post("/preview")
async def preview(
    body: PreviewRequest,
    principal: CurrentPrincipal,
    admission: CurrentAdmission,
    context: CurrentContextWindow,
    members: Annotated[MemberReader, Depends(resource(MemberReader))],
    work: CurrentBodyWork,
) -> Response:
    """The tokens of the prompt of a request that is still being written, and its code. No job is created."""
    counter = TokenCounter(principal, admission=admission, context=context, members=members, work=work)
    bodies = body.bodies()
    counts = [await counter.count(one) for one in bodies]
    shown = bodies[min(body.shown, len(bodies) - 1)]
    code = await work.run(code_of, shown, body.headers)
    return JSONResponse({"counts": [count and asdict(count) for count in counts], "code": asdict(code)})


PAGE = Page(path="playground", title="Playground", router=router, key="p", scope=Scope.INFERENCE)
