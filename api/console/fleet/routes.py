"""`/console/models`: what runs where; drain workers, pause and resume queues."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.admin.fleet.service import FleetService
from api.console.actions import dialog_response, read_form, redirect
from api.console.data.overview import Live
from api.console.data.overview_store import OverviewStore
from api.console.fleet.model_view import build_model_view
from api.console.fleet.store import RunningJobsStore
from api.console.fleet.view import build_view, entry_text, model_card
from api.console.live import Broadcaster
from api.console.live_streams import CurrentStreams
from api.console.overview.snapshot import DEFAULT_RANGE, RANGES, RangeName, Snapshots
from api.console.overview.view import RANGE_NAMES
from api.console.page import Page
from api.console.templates import page_response, render
from api.console.viewer import CurrentViewer, Viewer
from api.http.dependencies import CurrentStreamSettings, resource
from api.http.sse import event_stream
from api.keys.principal import Scope
from shared.config.models.loader import Registry
from shared.domain.errors import NotFound

# The page of a model has a chart, which changes more slowly than what runs.
MODEL_INTERVAL_S = 5.0
# Workers that ended are shown for an hour, and so is what became of their jobs.
ENDED_AGE = timedelta(hours=1)
MAX_NAME = 1000

MODELS_PARTS = ("models", "ended", "summary")
MODEL_PARTS = ("notes", "stats", "chart", "workers", "engine")
Range = Annotated[RangeName, Query(alias="range")]
Name = Annotated[str, Query(max_length=MAX_NAME)]


class ModelAudience(NamedTuple):
    """Those who see the same page of a model."""

    is_operator: bool
    name: str
    range: RangeName


class FleetPages:
    """Renders the pages, and sends what changes."""

    def __init__(
        self, store: OverviewStore, running: RunningJobsStore, snapshots: Snapshots, registry: Registry
    ) -> None:
        self._store = store
        self._running = running
        self._snapshots = snapshots
        self._registry = registry
        self.models = Broadcaster("models", self.models_parts)
        self.model = Broadcaster("model", self.model_parts, interval_s=MODEL_INTERVAL_S)

    async def models_parts(self, is_operator: bool) -> Mapping[str, str]:
        """The parts of the page of all models, for operators or for members of projects."""
        live = await self.live()
        first_tokens = (await self._snapshots.get(DEFAULT_RANGE)).first_tokens
        running = await self._running.by_worker()
        view = build_view(live, running, first_tokens, self._registry, is_operator=is_operator)
        return {name: render(f"fleet/{name}.html", {"view": view}) for name in MODELS_PARTS}

    async def model_parts(self, audience: ModelAudience) -> Mapping[str, str]:
        """The parts of the page of one model.

        Raises:
            NotFound: there is no such model, and nothing waits for it or runs it.
        """
        live, running, end = await self.live(), await self._running.by_worker(), datetime.now(UTC)
        name = audience.name
        if not self._is_known(name, live):
            raise NotFound(f"There is no model {name!r}.")
        charts = await self._store.charts(end - RANGES[audience.range], end, model=name)
        card = model_card(name, live, running, {}, self._registry, is_operator=audience.is_operator)
        view = build_model_view(card, charts, audience.range, is_operator=audience.is_operator)
        return {part: render(f"fleet/model_{part}.html", {"view": view}) for part in MODEL_PARTS}

    async def live(self) -> Live:
        """What waits and runs now, and what became of workers in the last hour."""
        return await self._store.live(self._registry.queues, datetime.now(UTC) - ENDED_AGE)

    async def close(self) -> None:
        """End all computations."""
        await self.models.close()
        await self.model.close()

    def _is_known(self, name: str, live: Live) -> bool:
        seen = {queue.model for queue in live.queues} | {worker.model for worker in live.workers}
        return name in self._registry or name in seen


Pages = Annotated[FleetPages, Depends(resource(FleetPages))]
Fleet = Annotated[FleetService, Depends(resource(FleetService))]
CurrentRegistry = Annotated[Registry, Depends(resource(Registry))]


async def require_operator(viewer: CurrentViewer) -> None:
    """Refuse viewers whose key has no `admin` scope, as the API does."""
    viewer.principal.require(Scope.ADMIN)


OPERATORS = [Depends(require_operator)]
router = APIRouter()


@router.get("")
async def models_page(request: Request, viewer: CurrentViewer, pages: Pages) -> Response:
    """All models, their queues and their workers."""
    return page_response(request.scope, "fleet/fleet.html", parts=await pages.models_parts(viewer.is_operator))


@router.get("/live")
async def models_events(
    viewer: CurrentViewer, pages: Pages, streams: CurrentStreams, settings: CurrentStreamSettings
) -> Response:
    """The parts of the page that change, as server-sent events."""
    frames = pages.models.frames(viewer.is_operator, streams)
    return event_stream(frames, settings)


@router.get("/model")
async def model_page(
    request: Request,
    viewer: CurrentViewer,
    pages: Pages,
    registry: CurrentRegistry,
    name: Name,
    range_name: Range = DEFAULT_RANGE,
) -> Response:
    """One model."""
    parts = await pages.model_parts(_audience(viewer, name, range_name))
    routes = [route.name for route in registry.routes if name in route.candidates]
    spec = registry.models.get(name)
    return page_response(
        request.scope,
        "fleet/model.html",
        name=name,
        parts=parts,
        entry=entry_text(registry, name) if viewer.is_operator else None,
        description="" if spec is None else spec.description,
        queue=registry.queue_of(name),
        adapters=[] if spec is None else spec.adapters,
        engine="" if spec is None else spec.engine,
        routes=routes,
        is_operator=viewer.is_operator,
        range=range_name,
        ranges=RANGES,
        range_names=RANGE_NAMES,
    )


@router.get("/model/live")
async def model_events(
    viewer: CurrentViewer,
    pages: Pages,
    streams: CurrentStreams,
    settings: CurrentStreamSettings,
    name: Name,
    range_name: Range = DEFAULT_RANGE,
) -> Response:
    """The parts of a model's page that change, as server-sent events."""
    frames = pages.model.frames(_audience(viewer, name, range_name), streams)
    return event_stream(frames, settings)


@router.get("/drain", dependencies=OPERATORS)
async def ask_to_drain(request: Request, pages: Pages, worker: Name, back: str = "") -> Response:
    """Ask whether to drain a worker."""
    found = next((one for one in (await pages.live()).workers if one.id == worker), None)
    if found is None:
        raise NotFound(f"There is no worker {worker!r}.")
    return dialog_response(request, "fleet/drain.html", worker=found, back=back)


@router.post("/drain", dependencies=OPERATORS)
async def drain(request: Request, viewer: CurrentViewer, fleet: Fleet) -> Response:
    """Drain a worker."""
    form = await read_form(request)
    worker = await fleet.drain(viewer.principal, form["worker"])
    return _back(request, form["back"], worker.model)


@router.get("/pause", dependencies=OPERATORS)
async def ask_to_pause(request: Request, pages: Pages, model: Name, back: str = "") -> Response:
    """Ask whether to pause a model's queue."""
    return dialog_response(request, "fleet/pause.html", **await _queue(pages, model), back=back)


@router.post("/pause", dependencies=OPERATORS)
async def pause(request: Request, viewer: CurrentViewer, fleet: Fleet) -> Response:
    """Pause a model's queue."""
    form = await read_form(request)
    await fleet.pause(viewer.principal, form["model"])
    return _back(request, form["back"], form["model"])


@router.get("/resume", dependencies=OPERATORS)
async def ask_to_resume(request: Request, pages: Pages, model: Name, back: str = "") -> Response:
    """Ask whether to resume a model's queue."""
    return dialog_response(request, "fleet/resume.html", **await _queue(pages, model), back=back)


@router.post("/resume", dependencies=OPERATORS)
async def resume(request: Request, viewer: CurrentViewer, fleet: Fleet) -> Response:
    """Resume a model's queue."""
    form = await read_form(request)
    await fleet.resume(viewer.principal, form["model"])
    return _back(request, form["back"], form["model"])


async def _queue(pages: FleetPages, model: str) -> dict[str, Any]:
    """What waits for a model, and what runs."""
    queues = [queue for queue in (await pages.live()).queues if queue.model == model]
    if not queues:
        raise NotFound(f"There is no model {model!r}.")
    return {
        "model": model,
        "waiting": sum(queue.waiting for queue in queues),
        "running": sum(queue.running for queue in queues),
        "paused_at": queues[0].paused_at,
    }


def _audience(viewer: Viewer, name: str, range_name: RangeName) -> ModelAudience:
    return ModelAudience(viewer.is_operator, name, range_name)


def _back(request: Request, page: str, model: str) -> Response:
    """Lead to the page that the question was asked on."""
    return redirect(request, f"models/model?name={quote(model, safe='')}" if page == "model" else "models")


PAGE = Page(path="models", title="Models and workers", router=router, key="m", group="Fleet")
