"""JSON responses that may be large: encoded in a thread, in pieces, while the client reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Response
from fastapi.responses import StreamingResponse

from shared.runtime.chunked_json import dump, dump_pieces
from shared.runtime.offload import INLINE_BYTES, off_loop

# Bytes that are sent at once.
CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A value to encode. `size` is about its bytes; if they are many, `build` runs in a thread too.

    The value may have lists that convert their items when they are read (`shared.runtime.chunked_json.Mapped`).
    """

    build: Callable[[], Any]
    size: int


async def json_response(body: JsonBody, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Respond with the JSON of a value."""
    value = await off_loop(body.size, body.build)
    if body.size <= INLINE_BYTES:
        return Response(dump(value), status, headers, "application/json")
    return StreamingResponse(encoded(value), status, headers, "application/json")


async def encoded(value: Any) -> AsyncIterator[bytes]:
    """Encode a large value in chunks."""
    pieces = dump_pieces(value)
    while chunk := await off_loop(INLINE_BYTES + 1, _chunk, pieces):
        yield chunk


def _chunk(pieces: Iterator[bytes]) -> bytes:
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK:
            break
    return bytes(chunk)
