"""FastAPI dependencies of files."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from api.files.service import FileService
from api.http.dependencies import resource
from api.http.members import MemberReader

Members = Annotated[MemberReader, Depends(resource(MemberReader))]
Files = Annotated[FileService, Depends(resource(FileService))]
