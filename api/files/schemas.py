"""Schemas of OpenAI's Files API."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.files.store import Purpose, StoredFile
from api.http.pagination import PageView

# OpenAI's bounds: one hour to thirty days.
MIN_RETENTION_S, MAX_RETENTION_S = 3600, 30 * 24 * 3600


class ExpiresAfter(BaseModel):
    """Retention of a file, in seconds from its creation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_RETENTION_S, le=MAX_RETENTION_S)


class FileView(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(PageView[FileView]):
    """A page of files. `after=last_id` selects the next page."""


class FileDeleted(BaseModel):
    """A deleted file."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def file_view(file: StoredFile) -> FileView:
    """Convert a file to its API view."""
    return FileView(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=int(file.expires_at.timestamp()) if file.expires_at else None,
        filename=file.filename,
        purpose=file.purpose,
    )
