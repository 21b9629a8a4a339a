"""Streaming parser for multipart forms."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from api.files.multipart import Part, read_form
from shared.domain.errors import InvalidRequest

TYPE = "multipart/form-data; boundary=b0undary"
FORM = (
    b'--b0undary\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="M\xc3\xbchle.jsonl"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\nline one\r\n--b0und\n\r\n"
    b"\r\n--b0undary--\r\n"
)


async def in_chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def parts(data: bytes, size: int = 7, content_type: str = TYPE) -> list[tuple[Part, bytes]]:
    found: list[tuple[Part, bytes]] = []
    async for item in read_form(content_type, in_chunks(data, size)):
        if isinstance(item, Part):
            found.append((item, b""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + item)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
async def test_chunk_boundaries_do_not_affect_the_parts(size: int) -> None:
    assert await parts(FORM, size) == [
        (Part("purpose", None), b"batch"),
        (Part("file", "Mühle.jsonl"), b"line one\r\n--b0und\n\r\n"),
    ]


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", TYPE),
        (FORM[:-20], TYPE),
        (b"purpose=batch", TYPE),
        (b"--b0undary\r\n\r\nno name\r\n--b0undary--\r\n", TYPE),
        (FORM, "multipart/form-data"),
        (FORM, "application/json"),
        (FORM, ""),
        (FORM, "multipart/form-data; boundary=" + "b" * 5000),
    ],
)
async def test_invalid_forms_are_rejected(data: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        await parts(data, content_type=content_type)
