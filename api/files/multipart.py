"""A multipart form, read as it comes: the bytes of a part are handed on at once and kept nowhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from shared.domain.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Part:
    """A part begins. `filename` is None for a plain field."""

    name: str
    filename: str | None


async def read_form(content_type: str, body: AsyncIterator[bytes]) -> AsyncIterator[Part | bytes]:
    """Each part, followed by its bytes in chunks.

    Raises:
        InvalidRequest: it is no form, or not a whole one.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise InvalidRequest("The body must be a form, sent with `Content-Type: multipart/form-data`.")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary.encode("latin-1", "replace"), reader.callbacks())  # type: ignore[arg-type]
        async for data in body:
            parser.write(data)
            for item in reader.take():
                yield item
    except FormParserError as error:
        raise InvalidRequest(f"The body is not a valid form: {error}") from None
    if not reader.ended:
        raise InvalidRequest("The body is not a valid form: it ends too early.")


class _Reader:
    """What the parser has found since it was last asked."""

    def __init__(self) -> None:
        self.ended = False
        self._found: list[Part | bytes] = []
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
            "on_part_data": lambda data, start, end: self._found.append(data[start:end]),
            "on_end": self._on_end,
        }

    def take(self) -> list[Part | bytes]:
        found, self._found = self._found, []
        return found

    def _on_part_begin(self) -> None:
        self._headers = Message()

    def _on_header_end(self) -> None:
        # Browsers and SDKs send names in UTF-8, as the standard for forms says.
        self._headers[self._name.decode("latin-1")] = self._value.decode("utf-8", "replace")
        self._name.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        name = self._headers.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise InvalidRequest("The body is not a valid form: a part has no name.")
        filename = self._headers.get_filename()
        self._found.append(Part(name, filename))

    def _on_end(self) -> None:
        self.ended = True
