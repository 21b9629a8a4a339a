"""Upload limits. A failed upload leaves nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import ClientDisconnect

from api.files.blobs import LocalBlobs
from api.files.service import FileService
from api.files.store import FileStore, StoredFile
from api.files.upload import FORM_BYTES
from shared.domain.errors import InvalidRequest, QuotaExceeded, TooLarge
from shared.domain.owner import Owner
from tests.support.database import make_owner
from tests.support.metrics import api_metrics

MAX_BYTES, MAX_LINES, MAX_PROJECT_BYTES = 100_000, 10, 250_000
TYPE = "multipart/form-data; boundary=b"
PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
END = b"\r\n--b--\r\n"


@pytest.fixture
def files(database: AsyncEngine, tmp_path: Path) -> FileService:
    return FileService(
        FileStore(database),
        LocalBlobs(tmp_path),
        max_bytes=MAX_BYTES,
        max_lines=MAX_LINES,
        max_project_bytes=MAX_PROJECT_BYTES,
        metrics=api_metrics(),
        retention_s=None,
    )


async def chunks(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def test_a_file_of_the_maximum_size_is_accepted(files: FileService, owner: Owner, tmp_path: Path) -> None:
    content = b"x" * MAX_BYTES
    file = await files.upload(owner, TYPE, "", chunks(FILE, content, b"\r\n", PURPOSE[:-2], END))
    assert file.bytes == MAX_BYTES
    assert os.listdir(tmp_path) == [file.id]
    assert b"".join([chunk async for chunk in await files.content(file)]) == content


@pytest.mark.parametrize("lines", [b"x\n" * MAX_LINES, b"x\n" * (MAX_LINES - 1) + b"x"])
async def test_a_file_with_the_maximum_number_of_lines_is_accepted(
    files: FileService, owner: Owner, lines: bytes
) -> None:
    assert (await files.upload(owner, TYPE, "", chunks(PURPOSE, FILE, lines, END))).bytes == len(lines)


@pytest.mark.parametrize("lines", [b"x\n" * MAX_LINES + b"x", b"x\n" * (MAX_LINES + 1)])
async def test_a_file_with_more_lines_is_rejected(
    files: FileService, owner: Owner, tmp_path: Path, lines: bytes
) -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_LINES} lines"):
        await files.upload(owner, TYPE, "", chunks(PURPOSE, FILE, lines, END))
    assert os.listdir(tmp_path) == []


async def test_a_larger_file_is_rejected_before_it_is_read(files: FileService, owner: Owner) -> None:
    unread = chunks(AssertionError("it was read"))
    with pytest.raises(TooLarge):
        await files.upload(owner, TYPE, str(MAX_BYTES + FORM_BYTES + 1), unread)


@pytest.mark.parametrize(
    "pieces",
    [
        (PURPOSE, FILE, b"x" * (MAX_BYTES + 1), END),
        (PURPOSE, FILE, *[b"x" * 10_000] * 20, END),
        (b"--b\r\nX: " + b"x" * 4000, *[b"\r\nX: " + b"x" * 4000] * 40),
    ],
    ids=["one chunk", "several chunks", "headers"],
)
async def test_a_larger_file_without_a_content_length_is_rejected(
    files: FileService, owner: Owner, tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    with pytest.raises((TooLarge, InvalidRequest)):
        await files.upload(owner, TYPE, "", chunks(*pieces))
    assert os.listdir(tmp_path) == []


async def test_an_upload_of_a_client_that_disconnects_leaves_nothing(
    files: FileService, owner: Owner, tmp_path: Path
) -> None:
    with pytest.raises(ClientDisconnect):
        await files.upload(owner, TYPE, "", chunks(PURPOSE, FILE, b"half", ClientDisconnect()))
    assert os.listdir(tmp_path) == []


async def test_an_upload_whose_row_cannot_be_inserted_leaves_nothing(
    files: FileService, owner: Owner, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError):
        await files.upload(replace(owner, project_id=owner.project_id + 1), TYPE, "", chunks(PURPOSE, FILE, b"x", END))
    assert os.listdir(tmp_path) == []


async def test_the_files_of_a_project_are_limited_together(
    files: FileService, owner: Owner, database: AsyncEngine, tmp_path: Path
) -> None:
    async def upload(owner: Owner, size: int, length: str = "") -> StoredFile:
        return await files.upload(owner, TYPE, length, chunks(FILE, b"x" * size, b"\r\n", PURPOSE[:-2], END))

    first, _ = await upload(owner, 100_000), await upload(owner, 100_000)
    with pytest.raises(QuotaExceeded, match=r"250000 bytes \(HEADRACE_PROJECT_FILE_BYTES\); delete"):
        await upload(owner, 60_000)
    with pytest.raises(QuotaExceeded):  # before the body is read
        await files.upload(owner, TYPE, "90000", chunks(AssertionError("read")))
    assert len(os.listdir(tmp_path)) == 2
    other = await make_owner(database, "other")
    assert (await upload(other, 100_000)).bytes == 100_000
    await files.delete(first.id, owner.project_id)
    assert (await upload(owner, 60_000)).bytes == 60_000
