"""`/v1/evals`: rubrics, runs of judges, reports, comparisons and labels."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.evals.dependencies import CurrentEvals, Labeller, Operator, labelled_project, labeller_id
from api.evals.report_schemas import ComparisonView, ReportView
from api.evals.rubrics import MAX_NAME
from api.evals.schemas import (
    ItemsCreate,
    JudgementList,
    JudgementView,
    LabelCreate,
    LabelList,
    LabelView,
    RubricList,
    RubricView,
    RunCreate,
    RunList,
    RunView,
)
from api.http.errors import ErrorResponse
from api.http.json_body import JsonRoute
from api.http.openapi import ERRORS, FAILED, NOT_FOUND, READ
from api.http.pagination import After, Limit
from shared.domain.field_types import MAX_MODEL_NAME
from shared.domain.judgements import RunKind

MAX_DAYS = 365

router = APIRouter(prefix="/v1/evals", tags=["evals"], route_class=JsonRoute)

FORBIDDEN: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorResponse, "description": "The API key does not have the scope."}
}
RESPONSES = {**ERRORS, **FORBIDDEN}
Days = Annotated[int, Query(ge=1, le=MAX_DAYS, description="Of the answers of the last days.")]
ModelQuery = Annotated[str, Query(min_length=1, max_length=MAX_MODEL_NAME)]
RubricQuery = Annotated[str | None, Query(max_length=MAX_NAME, description="Only of this rubric.")]


@router.get("/rubrics", responses=RESPONSES)
async def list_rubrics(_: Operator, evals: CurrentEvals) -> RubricList:
    """List the rubrics of rubrics.yaml, with how far their sampling is."""
    return RubricList(data=[RubricView.of(state) for state in await evals.rubrics()])


@router.get("/report", responses={**RESPONSES, **NOT_FOUND})
async def get_report(
    _: Operator,
    evals: CurrentEvals,
    rubric: Annotated[str, Query(min_length=1, max_length=MAX_NAME)],
    days: Days = 30,
) -> ReportView:
    """Get the scores of sampled answers by a rubric, with the agreement between the judge and people."""
    return ReportView.of(await evals.report(rubric, days))


@router.get("/comparison", responses={**RESPONSES, **NOT_FOUND})
async def compare_models(
    _: Operator,
    evals: CurrentEvals,
    a: ModelQuery,
    b: ModelQuery,
    rubric: RubricQuery = None,
    run_id: Annotated[str | None, Query(max_length=100, description="By this run.")] = None,
    days: Days = 30,
) -> ComparisonView:
    """Compare two models: is `b` worse than `a`?

    By default, by the newest run that has compared them. If there is none, and a rubric is named, by the scores of
    sampled answers.
    """
    return ComparisonView.of(await evals.compare(a, b, rubric, days, run_id=run_id))


@router.get("/runs", responses=RESPONSES)
async def list_runs(
    _: Operator, evals: CurrentEvals, limit: Limit = 20, after: After = None, rubric: RubricQuery = None
) -> RunList:
    """List the runs, newest first."""
    return RunList.of(await evals.page(limit=limit, after=after, rubric=rubric), RunView.of)


@router.post("/runs", responses={**RESPONSES, **NOT_FOUND, 200: READ})
async def create_run(body: RunCreate, _: Operator, evals: CurrentEvals) -> RunView:
    """Create a run over a set. Its items follow: `POST /v1/evals/runs/{run_id}/items`."""
    options = {"set": body.set.model_dump(), "expected": body.expected}
    return RunView.of(await evals.create(RunKind(body.kind), body.rubric, body.judge, body.models, options))


@router.get("/runs/{run_id}", responses={**RESPONSES, **NOT_FOUND})
async def get_run(run_id: str, _: Operator, evals: CurrentEvals) -> RunView:
    """Get a run, with its judgements by state."""
    return RunView.of(await evals.get(run_id))


@router.post("/runs/{run_id}/items", responses={**RESPONSES, **NOT_FOUND, 413: FAILED[413], 200: READ})
async def add_items(run_id: str, body: ItemsCreate, _: Operator, evals: CurrentEvals) -> JudgementList:
    """Judge items of a set.

    The judgements are jobs at the priority of batches, of the project `headrace-judge`: a budget of that project bounds
    what they may cost, and if it has no room, this call fails with 429. The same items can be sent again; none is
    judged twice.
    """
    judgements = await evals.add(run_id, [one.item() for one in body.items])
    views = [JudgementView.of(one) for one in judgements]
    return JudgementList(data=views, first_id=views[0].id, last_id=views[-1].id, has_more=False)


@router.get("/runs/{run_id}/judgements", responses={**RESPONSES, **NOT_FOUND})
async def list_judgements(
    run_id: str, _: Operator, evals: CurrentEvals, limit: Limit = 20, after: After = None
) -> JudgementList:
    """List the judgements of a run, oldest first."""
    page = await evals.judgements(run_id, limit=limit, after=after)
    return JudgementList.of(page, JudgementView.of, lambda one: str(one.id))


@router.get("/labels", responses=RESPONSES)
async def list_labels(
    principal: Labeller, evals: CurrentEvals, limit: Limit = 20, after: After = None, rubric: RubricQuery = None
) -> LabelList:
    """List the labels of the project, newest first; with the `admin` scope those of all projects."""
    project_id = labelled_project(principal)
    page = await evals.labels(limit=limit, after=after, rubric=rubric, project_id=project_id)
    names = await evals.labeller_names(page.items)
    return LabelList.of(page, partial(LabelView.of, names=names), lambda one: str(one.id))


@router.post("/labels", responses={**RESPONSES, **NOT_FOUND, 200: READ})
async def create_label(body: LabelCreate, principal: Labeller, evals: CurrentEvals) -> LabelView:
    """Label a judged answer. A second label of the same key replaces the first."""
    labeller, project_id = labeller_id(principal), labelled_project(principal)
    label = await evals.label(body.rubric, body.item, labeller, body.score, project_id)
    return LabelView.of(label, names=await evals.labeller_names([label]))
