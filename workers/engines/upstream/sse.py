"""Reads event streams: JSON as servers send it rather than as the standard has it, and events of text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from workers.engines.upstream.cut_characters import CutEvent, without_surrogates

# An event above `DENSE_BYTES` may have `MAX_VALUES` quotation marks and commas: values, not bytes, take time to parse.
MAX_EVENT_BYTES = 2 << 20
DENSE_BYTES = 1 << 19
MAX_VALUES = 300_000
# Only smaller events that are not quite JSON are repaired, since that is slow.
MAX_REPAIRED_BYTES = 64 << 10

# What may be between two values on one line.
_SEPARATOR = re.compile(r"\s*(?:data:)?\s*")

DONE = object()
BOM = b"\xef\xbb\xbf"
_ERROR_KINDS = (b"error", b"exception")


class EventTooLarge(ValueError):
    """An event is larger than `MAX_EVENT_BYTES`, or has too many values for its size."""


class LineReader:
    """Splits a body into lines, which may end with LF, CRLF or CR, without their ends and without a byte order mark."""

    def __init__(self) -> None:
        # The parts of the last line, which has no end yet.
        self._rest: list[bytes] = []
        self.pending = 0
        self._started = False
        self._ended_with_cr = False

    def read(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete; `pending` is the size of what is left."""
        if self._ended_with_cr:
            self._ended_with_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._ended_with_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n")
            if b"\r" in data:
                data = data.replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        if lines and self._rest:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest, self.pending = [], 0
        if rest:
            self._rest.append(rest)
            self.pending += len(rest)
        if lines and not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix(BOM)
        return lines


class TextEvent(NamedTuple):
    """An event of a stream by the standard. `kind` is empty if it has no type; `id` if no event has had one so far."""

    kind: str
    data: str
    id: str


class TextEventReader:
    """Reads the events of a stream whose data is text. An event without its last, empty line is not read."""

    def __init__(self) -> None:
        self._lines = LineReader()
        self._kind = ""
        self._data: list[bytes] = []
        self._size = 0
        self._id = ""

    def read(self, data: bytes) -> Iterator[TextEvent]:
        """Yield the events that these bytes complete.

        Raises:
            EventTooLarge: the stream is not read any further.
        """
        lines = self._lines.read(data)
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line)
            elif not line:
                if self._data or self._kind:
                    text = b"\n".join(self._data).decode("utf-8", "replace")
                    event = TextEvent(self._kind, text, self._id)
                    self._kind, self._data, self._size = "", [], 0
                    yield event
            else:
                self._field(line)
        if self._size + self._lines.pending > MAX_EVENT_BYTES:
            raise EventTooLarge

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        match name:
            case b"event":
                self._kind = text
            case b"id" if "\0" not in text:
                self._id = text
            case b"data":
                self._data.append(b"")


class EventReader:
    """Reads the values of one body, which may be an event stream, lines of JSON, or a single JSON document.

    Lines may end with LF, CRLF or CR. A line of data that is JSON is a value, whether or not an empty line follows it;
    other lines of data are joined until the event ends. Comments and unknown fields are skipped. An event of the type
    `error`, and the field `error` of old llama.cpp servers, become `{"error": ...}`. An event that ends inside a
    character is yielded with the next one, which may have the rest of the character.
    """

    def __init__(self, *, keep_bytes: bool = False, named: bool = False) -> None:
        """`keep_bytes`: bytes that are not UTF-8 become surrogates (PEP 383) and not U+FFFD, so that a caller can join
        a character that is cut between two events. `named`: an object without a `type` gets that of its event.
        """
        self._is_named = named
        # The type of the event that is being read, if it is wanted.
        self._name = b""
        self._keeps_bytes = keep_bytes
        self._errors = "surrogateescape" if keep_bytes else "replace"
        self._lines = LineReader()
        # The lines of an event or document that is not complete, and their bytes.
        self._held: list[bytes] = []
        self._size = 0
        self._kind = b""
        # The last event, if it ends inside a character.
        self._cut: CutEvent | None = None
        # Whether the last value was not an event: a document, or a line of JSON.
        self.bare = False

    def read(self, data: bytes) -> Iterator[Any]:
        """Yield the values that these bytes complete, or `DONE`.

        Raises:
            EventTooLarge: the body is not read any further.
            ValueError: an event is not JSON.
        """
        lines = self._lines.read(data)
        self._check_size()
        yield from self._values(lines)

    def _values(self, lines: list[bytes]) -> Iterator[Any]:
        for line in lines:
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if self._held or self._kind:
                    yield from self._special(payload)
                elif payload:
                    self.bare = False
                    try:
                        value = orjson.loads(payload) if len(payload) <= DENSE_BYTES else load_json(payload)
                    except orjson.JSONDecodeError:
                        yield from self._special(payload)
                    else:
                        if self._cut is not None:
                            yield from self._end_cut()
                        is_typed = not self._name or value.__class__ is not dict or "type" in value
                        yield value if is_typed else self._typed(value)
            elif line:
                yield from self._other(line)
            else:
                if self._held or self._kind:
                    yield from self._end_event()
                self._name = b""

    def end(self) -> Iterator[Any]:
        """Yield what is left at the end of the body, where the last line may lack its end."""
        if self._lines.pending:
            yield from self.read(b"\n")
        yield from self._end_event(at_end=True)
        yield from self._end_cut()

    def _check_size(self) -> None:
        if self._size + self._lines.pending > MAX_EVENT_BYTES:
            raise EventTooLarge

    def _special(self, payload: bytes) -> Iterator[Any]:
        """A line of data that is not JSON by itself, or that belongs to an event which began before it."""
        if self._held:
            self._hold(payload)
        elif _is_done(payload):
            yield from self._end_cut()
            yield DONE
        elif payload.startswith(b"data:"):  # a proxy wrapped the line twice
            yield from self._values([payload])
        elif payload.startswith(b"error:"):
            yield from self._end_cut()
            yield {"error": _text(payload[6:])}
        elif payload and not payload.startswith(b":"):  # a proxy made a comment an event
            self._hold(payload)
            if self._kind:
                return
            if (value := _loosely_decoded(payload, self._errors)) is not None:
                self._held, self._size = [], 0
                yield from (value,) if self._keeps_bytes else self._joined(value)
            elif len(values := _several(payload, self._errors)) > 1:
                self._held, self._size = [], 0
                for value in values:
                    yield from (value,) if self._keeps_bytes else self._joined(value)

    def _typed(self, value: Any) -> Any:
        if self._name and isinstance(value, dict) and "type" not in value and "object" not in value:
            value["type"] = _text(self._name)
        return value

    def _joined(self, value: Any) -> Iterator[Any]:
        """The last event, if it was cut, and this one, unless it is cut; the second may have lone surrogates."""
        value = self._typed(value)
        yield from self._end_cut(value)
        self._cut = CutEvent.of(value)
        if self._cut is None:
            yield without_surrogates(value)

    def _end_cut(self, following: Any = None) -> Iterator[Any]:
        if (cut := self._cut) is not None:
            self._cut = None
            yield cut.completed(following)

    def _hold(self, line: bytes) -> None:
        self._held.append(line)
        self._size += len(line)
        self._check_size()

    def _other(self, line: bytes) -> Iterator[Any]:
        if self._held and not self.bare and self._is_in_text():  # the server did not escape a line break
            self._hold(line)
            return
        line = line.strip()
        name, colon, value = line.partition(b":")
        if self._held and self.bare:
            self._hold(line)
        elif line.startswith(b"data:"):
            yield from self._values([line])
        elif line.startswith((b"{", b"[", b'"')):
            self.bare = True
            try:
                yield load_json(line)
            except orjson.JSONDecodeError:
                self._hold(line)
        elif name == b"event":
            self._kind = value.strip() if value.strip() in _ERROR_KINDS else b""
            self._name = value if self._is_named and not self._kind else b""
        elif name == b"error" and colon:
            yield from self._end_cut()
            yield {"error": self._value_or_text(value.strip())}

    def _is_in_text(self) -> bool:
        """Whether the event so far ends inside a text."""
        held = b"\n".join(self._held) if self._size <= MAX_REPAIRED_BYTES else b""
        return (held.count(b'"') - held.count(b'\\"')) % 2 == 1

    def _end_event(self, *, at_end: bool = False) -> Iterator[Any]:
        if self._held and self.bare and not at_end:
            return  # a document may have empty lines
        held, kind = b"\n".join(self._held), self._kind
        self._held, self._size, self._kind = [], 0, b""
        if not held:
            return
        yield from self._end_cut()
        if kind:
            value = self._value_or_text(held)
            yield value if isinstance(value, dict) and value.get("error") else {"error": value}
        elif _is_done(held):
            yield DONE
        else:
            value = self._value(held)
            if value is None:
                raise ValueError("not JSON")
            yield self._typed(value)

    def _value(self, payload: bytes) -> Any:
        try:
            return load_json(payload)
        except orjson.JSONDecodeError:
            return _loosely_decoded(payload, self._errors) if self._keeps_bytes else repaired_json(payload)

    def _value_or_text(self, payload: bytes) -> Any:
        value = self._value(payload)
        return _text(payload) if value is None else value


def _is_done(payload: bytes) -> bool:
    return payload.strip(b'" []').upper() == b"DONE"


def load_json(payload: bytes) -> Any:
    """Decode JSON that takes little time to decode.

    Raises:
        EventTooLarge: it has too many values for its size.
        orjson.JSONDecodeError: it is not JSON.
    """
    if len(payload) > DENSE_BYTES:
        _check_density(payload)
    return orjson.loads(payload)


def repaired_json(payload: bytes, *, keep_surrogates: bool = False) -> Any:
    """Decode JSON with NaN, infinities, control characters, parts of characters or lone surrogates, which become U+FFFD
    unless the caller keeps them to join them.

    None if it is something else, or so large that decoding it would take long.
    """
    if keep_surrogates:
        return _loosely_decoded(payload, "replace")
    try:
        return without_surrogates(_loosely_decoded(payload, "replace"))
    except (ValueError, RecursionError):
        return None


def _loosely_decoded(payload: bytes, errors: str) -> Any:
    """As `repaired_json`, but lone surrogates stay. `errors`: what bytes that are not UTF-8 become."""
    if len(payload) > MAX_REPAIRED_BYTES:
        return None
    try:
        return json.loads(payload.decode("utf-8", errors).strip(), strict=False, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _several(payload: bytes, errors: str) -> list[Any]:
    """The JSON objects that a server has written on one line; empty if that is not what it is."""
    if len(payload) > MAX_REPAIRED_BYTES:
        return []
    text, values, at = payload.decode("utf-8", errors), [], 0
    decoder = json.JSONDecoder(strict=False, parse_constant=lambda _: None)
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            if not isinstance(value, dict):
                return []
            values.append(value)
            found = _SEPARATOR.match(text, at)
            at = found.end() if found else at
    except (ValueError, RecursionError):
        return []
    return values


# All bytes but quotation marks, commas, and what escapes consist of.
_CONTENT = bytes(set(range(256)) - set(b'",\\/bfnrtu'))


def _check_density(payload: bytes) -> None:
    """Raise `EventTooLarge` if JSON has too many quotation marks of strings, and commas between values.

    Those within strings do not count: an upstream may repeat a prompt that has any number of them. The content of the
    strings is removed first, because searching what is left takes a third of the time.
    """
    quotes = payload.count(b'"') - payload.count(b'\\"')
    if quotes + payload.count(b",") <= MAX_VALUES:  # all, also those within strings: much faster
        return
    marks = payload.translate(None, _CONTENT)
    if len(marks) <= MAX_VALUES:
        return
    marks = marks.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = marks.count(b'"')
    if quotes > MAX_VALUES or quotes + b"".join(marks.split(b'"')[::2]).count(b",") > MAX_VALUES:
        raise EventTooLarge


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace").strip()
