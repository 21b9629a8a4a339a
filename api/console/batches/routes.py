"""`/console/batches`: batches and files of the project of the session's key."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.batches.batch import Batch
from api.batches.service import BatchService
from api.console.batches.view import ENDPOINTS, batch_row, example, expires_in, history, shown_name
from api.console.live import Broadcaster
from api.console.live_streams import CurrentStreams
from api.console.page import Page
from api.console.templates import page_response, render
from api.console.viewer import CurrentViewer
from api.files.service import FileService
from api.files.store import StoredFile
from api.http.dependencies import CurrentRegistry, CurrentStreamSettings, resource
from api.http.sse import event_stream
from api.keys.principal import Scope
from shared.domain.errors import NotFound

PAGE_SIZE = 20
Cursor = Annotated[str | None, Query(max_length=200)]


class ListAudience(NamedTuple):
    """Those who see the same page of batches and the same page of files."""

    project_id: int
    after: str | None
    files_after: str | None


class BatchAudience(NamedTuple):
    """Those who look at the same batch."""

    project_id: int
    batch_id: str


class BatchPages:
    """Renders the pages, and sends what changes."""

    def __init__(self, batches: BatchService, files: FileService) -> None:
        self._batches = batches
        self._files = files
        self.lists = Broadcaster("batches", self.list_parts)
        self.details = Broadcaster("batch", self.batch_parts)

    async def list_parts(self, audience: ListAudience) -> Mapping[str, str]:
        """The lists of batches and files, as HTML."""
        batches, files = await asyncio.gather(
            self._batches.page(audience.project_id, limit=PAGE_SIZE, after=audience.after),
            self._files.page(
                audience.project_id, purpose=None, limit=PAGE_SIZE, after=audience.files_after, ascending=False
            ),
        )
        names = await self._files.names(audience.project_id, [batch.input_file_id for batch in batches.items])
        rows = [batch_row(batch, names.get(batch.input_file_id)) for batch in batches.items]
        values = {"rows": rows, "page": batches, "after": audience.after, "files_after": audience.files_after}
        return {
            "batches": render("batches/list.html", values),
            "files": render(
                "batches/files.html", {**values, "page": files, "expires_in": expires_in, "shown_name": shown_name}
            ),
        }

    async def batch_parts(self, audience: BatchAudience) -> Mapping[str, str]:
        """The parts of a batch's page, as HTML."""
        batch = await self._batches.get(audience.batch_id, audience.project_id)
        files = {name: await self._file(batch, name) for name in ("input_file_id", "output_file_id", "error_file_id")}
        source = files["input_file_id"]
        row = batch_row(batch, source.filename if source is not None else None)
        values = {"row": row, "batch": batch, "files": files, "history": history(batch)}
        return {name: render(f"batches/{name}.html", values) for name in ("title", "progress", "results", "facts")}

    async def close(self) -> None:
        """End all computations."""
        await self.lists.close()
        await self.details.close()

    async def _file(self, batch: Batch, name: str) -> StoredFile | None:
        """A file of a batch; None if it has none, or the file was deleted."""
        file_id: str | None = getattr(batch, name)
        if file_id is None:
            return None
        try:
            return await self._files.get(file_id, batch.project_id)
        except NotFound:
            return None


CurrentPages = Annotated[BatchPages, Depends(resource(BatchPages))]
router = APIRouter()


@router.get("")
async def batches_page(
    request: Request,
    viewer: CurrentViewer,
    pages: CurrentPages,
    after: Cursor = None,
    files_after: Cursor = None,
) -> Response:
    """The lists, and the form that creates a batch."""
    parts = await pages.list_parts(ListAudience(viewer.principal.project_id, after, files_after))
    cursors = {"after": after, "files_after": files_after}
    query = "&".join(f"{name}={value}" for name, value in cursors.items() if value)
    return page_response(request.scope, "batches/batches.html", parts=parts, query=query, endpoints=ENDPOINTS)


@router.get("/live")
async def batches_events(
    viewer: CurrentViewer,
    pages: CurrentPages,
    streams: CurrentStreams,
    settings: CurrentStreamSettings,
    after: Cursor = None,
    files_after: Cursor = None,
) -> Response:
    """The lists as they change, as server-sent events."""
    audience = ListAudience(viewer.principal.project_id, after, files_after)
    await pages.list_parts(audience)  # a wrong cursor is an error, not a stream without parts
    frames = pages.lists.frames(audience, streams)
    return event_stream(frames, settings)


@router.get("/example.jsonl")
async def example_file(registry: CurrentRegistry) -> Response:
    """A small file to try a batch with."""
    headers = {"Content-Disposition": "attachment; filename=example.jsonl"}
    model = next(iter(registry.models), "MODEL")
    return Response(example(model), headers=headers, media_type="application/jsonl")


@router.get("/{batch_id}")
async def batch_page(request: Request, viewer: CurrentViewer, pages: CurrentPages, batch_id: str) -> Response:
    """One batch: its progress, its errors by line, its results."""
    parts = await pages.batch_parts(BatchAudience(viewer.principal.project_id, batch_id))
    return page_response(request.scope, "batches/batch.html", parts=parts, batch_id=batch_id)


@router.get("/{batch_id}/live")
async def batch_events(
    viewer: CurrentViewer,
    pages: CurrentPages,
    streams: CurrentStreams,
    settings: CurrentStreamSettings,
    batch_id: str,
) -> Response:
    """The parts of the page that change, as server-sent events."""
    audience = BatchAudience(viewer.principal.project_id, batch_id)
    await pages.batch_parts(audience)  # a batch that is not there is an error, not a stream without parts
    frames = pages.details.frames(audience, streams)
    return event_stream(frames, settings)


PAGE = Page(path="batches", title="Batches and files", router=router, key="b", scope=Scope.INFERENCE)
