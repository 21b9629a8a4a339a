"""FastAPI dependencies of files."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.files.service import FileService


async def file_service(request: Request) -> FileService:
    files: FileService = request.app.state.resources.files
    return files


Files = Annotated[FileService, Depends(file_service)]
