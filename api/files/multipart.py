"""Streaming parser for multipart forms: yields the bytes of each part without buffering them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from shared.domain.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Part:
    """The start of a part. `filename` is None for a plain field."""

    name: str
    filename: str | None


async def read_form(content_type: str, body: AsyncIterator[bytes]) -> AsyncIterator[Part | bytes]:
    """Yield each part, followed by its bytes in chunks.

    Raises:
        InvalidRequest: the body is not a form, or is incomplete.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise InvalidRequest("The body must be a form, sent with `Content-Type: multipart/form-data`.")
    parsed = _ParsedItems()
    try:
        parser = MultipartParser(boundary.encode("latin-1", "replace"), parsed.callbacks())  # type: ignore[arg-type]
        async for data in body:
            parser.write(data)
            for item in parsed.drain():
                yield item
    except FormParserError as error:
        raise InvalidRequest(f"The body is not a valid form: {error}") from None
    if not parsed.ended:
        raise InvalidRequest("The body is not a valid form: it is incomplete.")


class _ParsedItems:
    """Collects the parser's output until it is drained."""

    def __init__(self) -> None:
        self.ended = False
        self._items: list[Part | bytes] = []
        self._name = bytearray()
        self._value = bytearray()
        self._headers = Message()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": lambda data, start, end: self._items.append(data[start:end]),
            "on_end": self._on_end,
        }

    def drain(self) -> list[Part | bytes]:
        items, self._items = self._items, []
        return items

    def _on_part_begin(self) -> None:
        self._headers = Message()

    def _on_header_end(self) -> None:
        # Browsers and SDKs send names in UTF-8 (RFC 7578).
        self._headers[self._name.decode("latin-1")] = self._value.decode("utf-8", "replace")
        self._name.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        name = self._headers.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise InvalidRequest("The body is not a valid form: a part has no name.")
        filename = self._headers.get_filename()
        self._items.append(Part(name, filename))

    def _on_end(self) -> None:
        self.ended = True
