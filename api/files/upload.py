"""Receives uploads: forms with a file, which is streamed to the blob store, and its purpose."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable

from api.files.blobs import Blobs
from api.files.multipart import Part, read_form
from api.files.schemas import MAX_RETENTION_S, MIN_RETENTION_S
from api.files.store import FileStore, Purpose, StoredFile
from shared.domain.errors import InvalidRequest, TooLarge
from shared.domain.owner import Owner

# Allowance for the form's boundaries, headers and other fields.
FORM_BYTES = 16 * 1024
MAX_FIELD_BYTES = 1024
MAX_FILENAME = 255
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FIELDS = ("purpose", ANCHOR, SECONDS)


def refuse_field(name: str) -> None:
    """Reject a field that has no effect."""
    raise InvalidRequest(f"{name[:64]}: this parameter is unknown or not supported", param=name[:64])


class Upload:
    """One upload, limited in bytes and lines."""

    def __init__(
        self,
        store: FileStore,
        blobs: Blobs,
        *,
        max_bytes: int,
        max_lines: int,
        retention_s: float | None,
        unknown_field: Callable[[str], None],
        check_size: Callable[[int], Awaitable[None]],
    ) -> None:
        """`unknown_field` is called with the name of a field that has no effect; it may raise `InvalidRequest`.
        `check_size` gets the size of the form, if the client has sent it, and then that of the file; it may raise
        `QuotaExceeded`."""
        self._check_size = check_size
        self._unknown_field = unknown_field
        self._store = store
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._retention_s = retention_s
        self._fields: dict[str, bytes] = {}
        self._filename: str | None = None
        self._size = 0
        self._lines = 0
        self._last_byte = b""

    async def receive(self, owner: Owner, content_type: str, length: str, body: AsyncIterator[bytes]) -> StoredFile:
        """Store the file of a form. When this returns, the file is durable.

        Raises:
            TooLarge: the file exceeds the size limit.
            InvalidRequest: the form or a field is invalid, or the file is empty or has too many lines.
        """
        if length.isdigit() and int(length) > self._max_bytes + FORM_BYTES:
            raise self._too_large()
        await self._check_size(max(0, int(length) - FORM_BYTES) if length.isdigit() else 0)
        file_id = self._store.new_id()
        async with self._blobs.writing(file_id) as blob:
            part = Part("", None)
            async for item in read_form(content_type, self._limited(body)):
                if isinstance(item, Part):
                    part = item
                    self._begin(part)
                elif part.name == "file":
                    self._count(item)
                    await blob.write(item)
                elif part.name in FIELDS:
                    self._field(part.name, item)
            self._check()
            await self._check_size(self._size)
        assert self._filename is not None
        try:
            return await self._store.insert(
                file_id, owner, Purpose.BATCH, self._filename, self._size, self._retention_s
            )
        except Exception:
            await self._blobs.delete(file_id)
            raise

    async def _limited(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        size = 0
        async for data in body:
            size += len(data)
            if size > self._max_bytes + FORM_BYTES:
                raise self._too_large()
            yield data

    def _begin(self, part: Part) -> None:
        if part.name == "file":
            if self._filename is not None:
                raise InvalidRequest("file: must be given only once", param="file")
            if part.filename is None:
                raise InvalidRequest("file: must be a file with a file name", param="file")
            self._filename = (part.filename.replace("\0", "") or "upload")[-MAX_FILENAME:]
        elif part.name not in FIELDS:
            # A file under another name is a mistake that the client should learn of.
            (self._unknown_field if part.filename is None else refuse_field)(part.name)
        elif part.name in self._fields:
            raise InvalidRequest(f"{part.name}: must be given only once", param=part.name)
        else:
            self._fields[part.name] = b""

    def _field(self, name: str, data: bytes) -> None:
        self._fields[name] += data
        if len(self._fields[name]) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"{name}: is too long", param=name)

    def _count(self, data: bytes) -> None:
        self._size += len(data)
        self._lines += data.count(b"\n")
        self._last_byte = data[-1:] or self._last_byte
        if self._size > self._max_bytes:
            raise self._too_large()
        self._check_lines()

    def _check_lines(self) -> None:
        lines = self._lines + (self._last_byte not in (b"\n", b""))
        if lines > self._max_lines:
            raise InvalidRequest(f"file: has more than {self._max_lines} lines", param="file")

    def _check(self) -> None:
        if self._filename is None:
            raise InvalidRequest("file: this field is required", param="file")
        purpose = self._fields.get("purpose")
        if purpose is None:
            raise InvalidRequest("purpose: this field is required", param="purpose")
        if purpose != Purpose.BATCH.value.encode():
            text = purpose.decode("utf-8", "replace")[:64]
            raise InvalidRequest(f"purpose: must be `batch`, got {text!r}", param="purpose")
        if self._fields.get(ANCHOR) or self._fields.get(SECONDS):
            self._retention_s = self._expires_after()
        if not self._size:
            raise InvalidRequest("file: must not be empty", param="file")

    def _expires_after(self) -> int:
        """Parse `expires_after`, in seconds."""
        anchor, seconds = (self._fields.get(name, b"").decode("utf-8", "replace")[:64] for name in (ANCHOR, SECONDS))
        if anchor != "created_at":
            raise InvalidRequest(f"{ANCHOR}: must be `created_at`, got {anchor!r}", param=ANCHOR)
        if not (re.fullmatch("[0-9]{1,9}", seconds) and MIN_RETENTION_S <= int(seconds) <= MAX_RETENTION_S):
            raise InvalidRequest(
                f"{SECONDS}: must be a number from {MIN_RETENTION_S} to {MAX_RETENTION_S}, got {seconds!r}",
                param=SECONDS,
            )
        return int(seconds)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The file is larger than {self._max_bytes} bytes.")
