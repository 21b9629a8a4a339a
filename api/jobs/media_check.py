"""Checks the images and files of a request: their types, their data and their sizes. Nothing is fetched."""

from __future__ import annotations

import binascii
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from api.context.count_memo import current_memo
from shared.config.models.capabilities import ALL_FILE_TYPES
from shared.domain.content import FilePart, ImagePart
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest
from shared.runtime.offload import off_loop

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
# How the data of a type begins. WebP also has its name after the size.
_SIGNATURES = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
    "application/pdf": (b"%PDF-",),
}
# Types whose data cannot begin as a text does.
_NEVER_TEXT = ("image/png", "image/jpeg")
# PDF readers accept other bytes before the header.
_PDF_HEADER_WITHIN = 1024
# Characters of base64 that are checked in one piece, without holding the interpreter's lock for long. A multiple of 4.
_PIECE = 256 * 1024
_MAX_URL = 8192
# The images and files of one request.
MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The maximum size of one image or file, and of all in one request, in bytes (decoded)."""

    max_part_bytes: int
    max_bytes: int


# For requests that were admitted before.
NO_MEDIA_LIMITS = MediaLimits(sys.maxsize, sys.maxsize)


class MediaCheck:
    """Checks the images and files of requests."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits

    async def check(self, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` if a part has a type that is not supported, damaged data, or too much of it."""
        parts = [(path, part) for _, path, part in media_of(request)]
        if not parts:
            return
        if len(parts) > MAX_PARTS:
            path, _ = parts[-1]
            raise InvalidRequest(f"{path}: a request may have {MAX_PARTS} images and files", param=path)
        await off_loop(sum(part.size for _, part in parts), self._check, parts)

    def _check(self, parts: list[tuple[str, ImagePart | FilePart]]) -> None:
        total = 0
        for path, part in parts:
            if part.data is not None:
                total += self._check_data(path, part, part.data)
                if total > self._limits.max_bytes:
                    raise InvalidRequest(
                        f"{path}: the images and files of a request may have {self._limits.max_bytes} bytes together"
                        " (HEADRACE_MAX_MEDIA_BYTES)",
                        param=path,
                    )
            elif part.url is not None and (
                len(part.url) > _MAX_URL or not part.url[:8].lower().startswith(("http://", "https://"))
            ):
                raise InvalidRequest(
                    f"{path}: the URL must begin with https:// or http://, and have at most {_MAX_URL} characters",
                    param=path,
                )

    def _check_data(self, path: str, part: ImagePart | FilePart, data: str) -> int:
        """Returns the number of bytes."""
        is_image = isinstance(part, ImagePart)
        media_type = part.media_type or ""
        if not (media_type in IMAGE_TYPES if is_image else is_known_file_type(media_type)):
            known = ", ".join(IMAGE_TYPES if is_image else sorted(ALL_FILE_TYPES))
            raise InvalidRequest(
                f"{path}: the media type {media_type[:100]!r} is not supported; supported are {known}", param=path
            )
        size = len(data) // 4 * 3 - data[-2:].count("=")
        if size > self._limits.max_part_bytes:
            raise InvalidRequest(
                f"{path}: has {size} bytes; the maximum is {self._limits.max_part_bytes} (HEADRACE_MAX_PART_BYTES)",
                param=path,
            )
        try:
            start = _checked_base64(data)
        except ValueError:
            raise InvalidRequest(f"{path}: the data is not base64", param=path) from None
        is_text = _is_text(media_type)
        if not start and not is_text:
            raise InvalidRequest(f"{path}: the data is empty", param=path)
        found = _type_of(start)
        if found != media_type and (found in (_NEVER_TEXT if is_text else IMAGE_TYPES) or media_type in _SIGNATURES):
            what = f"the data is {found}" if found is not None else "the data is something else"
            raise InvalidRequest(f"{path}: {what}, but the media type is {media_type}", param=path)
        return size


def media_of(request: GenerateRequest) -> Sequence[tuple[str, str, ImagePart | FilePart]]:
    """The images and files of a request, each with its message's role and the path at which the client sent it.

    At most one more than a request may have.
    """
    return current_memo().once(_media_of, request)


def _media_of(request: GenerateRequest) -> Sequence[tuple[str, str, ImagePart | FilePart]]:
    parts = (
        (message.role, part.path or "messages", part)
        for message in request.messages or ()
        if isinstance(message.content, list)
        for part in message.media
    )
    return list(islice(parts, MAX_PARTS + 1))


def is_known_file_type(media_type: str) -> bool:
    """Whether a file may have this media type."""
    return media_type in ALL_FILE_TYPES or _is_text(media_type)


def _is_text(media_type: str) -> bool:
    return (
        media_type.startswith("text/") and len(media_type) < 100 and media_type.isascii() and media_type.isprintable()
    )


def _checked_base64(data: str) -> bytes:
    """Check base64, and return the first decoded bytes.

    Raises:
        ValueError: it is not base64.
    """
    start = b""
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        decoded = binascii.a2b_base64(piece, strict_mode=True)
        if "=" in piece and at + _PIECE < len(data):
            raise ValueError("padding")
        start = start or decoded[:_PDF_HEADER_WITHIN]
    return start


def _type_of(start: bytes) -> str | None:
    for media_type, signatures in _SIGNATURES.items():
        if media_type == "image/webp":
            if start.startswith(signatures) and start[8:12] == b"WEBP":
                return media_type
        elif media_type == "application/pdf":
            if signatures[0] in start:
                return media_type
        elif start.startswith(signatures):
            return media_type
    return None
