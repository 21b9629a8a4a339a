"""`/v1/files`: upload, list, read, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from api.files.dependencies import Files, Members
from api.files.schemas import MAX_RETENTION_S, MIN_RETENTION_S, FileDeleted, FileList, FileView, file_view
from api.http.errors import ErrorResponse
from api.http.members import MAX_NAMES, Shape
from api.http.openapi import ERRORS, READ
from api.http.pagination import After
from api.keys.auth import CurrentPrincipal

PATH = "/v1/files"

router = APIRouter(prefix=PATH, tags=["files"])


class _Form(BaseModel):
    """The fields of an upload's form are read as they arrive; this names none of them."""


_FORM = Shape(_Form)
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "Not found."}}
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines."},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_RETENTION_S,
                            "maximum": MAX_RETENTION_S,
                            "description": "Seconds from the upload until the file is deleted.",
                        },
                    },
                }
            }
        },
    }
}


@router.post(
    "",
    responses={**ERRORS, 200: READ, 413: {"model": ErrorResponse, "description": "The file is too large."}},
    openapi_extra=FORM,
)
async def upload(principal: CurrentPrincipal, files: Files, members: Members, request: Request) -> FileView:
    """Upload the input of a batch: JSON lines with one request each. Unknown fields of the form are ignored."""
    headers = request.headers
    unknown: dict[str, str] = {}

    def unknown_field(name: str) -> None:
        if len(unknown) < MAX_NAMES:
            unknown[name] = name
            members.read(_FORM, unknown, counted=False)

    file = await files.upload(
        principal.owner,
        headers.get("content-type", ""),
        headers.get("content-length", ""),
        request.stream(),
        unknown_field,
    )
    request.state.ignored = members.read(_FORM, unknown).ignored
    return file_view(file)


@router.get("", responses=ERRORS)
async def list_files(
    principal: CurrentPrincipal,
    files: Files,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Literal["asc", "desc"] = "desc",
    after: After = None,
) -> FileList:
    """List files, newest first unless `order=asc`."""
    page = await files.page(principal.project_id, purpose=purpose, limit=limit, after=after, ascending=order == "asc")
    return FileList.of(page, file_view)


@router.get("/{file_id}", responses={**ERRORS, **NOT_FOUND})
async def get_file(file_id: str, principal: CurrentPrincipal, files: Files) -> FileView:
    """Get a file's metadata."""
    return file_view(await files.get(file_id, principal.project_id))


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={**ERRORS, **NOT_FOUND, 200: {"content": {"application/jsonl": {}}, "description": "The file's bytes."}},
)
async def content(file_id: str, principal: CurrentPrincipal, files: Files) -> StreamingResponse:
    """Download a file's content."""
    file = await files.get(file_id, principal.project_id)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    return StreamingResponse(await files.content(file), headers=headers, media_type="application/jsonl")


@router.delete(
    "/{file_id}",
    responses={
        **ERRORS,
        **NOT_FOUND,
        409: {"model": ErrorResponse, "description": "The file is the input of an unfinished batch."},
    },
)
async def delete(file_id: str, principal: CurrentPrincipal, files: Files) -> FileDeleted:
    """Delete a file and its content."""
    await files.delete(file_id, principal.project_id)
    return FileDeleted(id=file_id)
