"""The lines of an export, as JSON lines and as rows of a Parquet file. Pure functions, but for the writers' state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson

from api.http.parquet import PARQUET, ParquetFile
from api.request_log.bodies import Body
from api.request_log.content import BodyRedactor
from api.requests.chat import chat_messages, chat_tools, with_answer
from api.requests.schemas import values_of
from api.requests.store import LoggedRequest
from shared.domain.log_level import LogLevel

if TYPE_CHECKING:
    import pyarrow

ExportFormat = Literal["jsonl", "parquet"]
TYPES: Mapping[ExportFormat, str] = {"jsonl": "application/x-ndjson", "parquet": PARQUET}
# Rows of a group of a Parquet file, and about the characters in them: fewer, if they are long.
GROUP_ROWS, GROUP_CHARACTERS = 1000, 4 * 1024 * 1024
# Members of a request's view that a line has elsewhere, or that say nothing about its content.
_LEFT_OUT = {"id", "model", "kind", "level", "body", "key", "request_id"}
# What clients have named themselves: it may have personal data too.
_NAMED = ("user", "conversation", "feedback")


def export_line(row: LoggedRequest, body: Body, redactor: BodyRedactor | None, export_id: str) -> dict[str, Any] | None:
    """A request and its answer in OpenAI's chat shape; None if it has no messages, but the ids of tokens.

    `redactor`: None: texts are exported as they are kept.
    """
    metadata = {name: value for name, value in values_of(row).items() if name not in _LEFT_OUT}
    request, output, level = body.request, body.output, body.level
    if redactor is not None:
        metadata |= redactor.redact_body({name: metadata[name] for name in _NAMED})[0]
        if level is LogLevel.FULL:
            redacted, _ = redactor.redact_body({"request": request, "output": output})
            request, output, level = redacted["request"], redacted["output"], LogLevel.REDACTED
    messages = chat_messages(request)
    if messages is None:
        return None
    tools = chat_tools(request)
    finish_reason = output[0].get("finish_reason") if output else None
    return {
        "messages": with_answer(messages, request, output),
        **({"tools": tools} if tools else {}),
        "model": row.model,
        "metadata": {
            "job_id": row.job_id,
            **metadata,
            "finish_reason": finish_reason,
            "headrace": {"export": export_id, "redaction_level": level.value},
        },
    }


class LineWriter(Protocol):
    """Writes the lines of an export as bytes of its file."""

    def add(self, lines: Sequence[dict[str, Any]]) -> bytes: ...

    def end(self, rows: int) -> bytes: ...


class JsonLines:
    """A line of JSON for each. The last one, which is held back until the end, has the number of all lines.

    So a file that was cut off is recognized: its last line has no such number.
    """

    def __init__(self) -> None:
        self._held: dict[str, Any] | None = None

    def add(self, lines: Sequence[dict[str, Any]]) -> bytes:
        found = [*([self._held] if self._held is not None else []), *lines]
        if not found:
            return b""
        self._held = found.pop()
        return b"".join(map(_json_line, found))

    def end(self, rows: int) -> bytes:
        if self._held is None:
            return b""
        self._held["metadata"]["headrace"]["rows"] = rows
        return _json_line(self._held)


def _json_line(line: Mapping[str, Any]) -> bytes:
    # Redaction and engines may leave half of a surrogate pair, which UTF-8 cannot encode.
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
    except TypeError:
        return orjson.dumps(_encodable(line), option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def _encodable(value: Any) -> Any:
    """The value without unpaired surrogates."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_encodable(name): _encodable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


class ParquetLines:
    """The same lines as rows of a Parquet file. Its metadata has the export and its level; its end, their number.

    Rows are collected until they fill a group. The end of the file describes each group, with some kilobytes: of small
    groups, it would fill the memory of this process, and readers refuse more than 100 MB.
    """

    def __init__(self, export_id: str, level: LogLevel) -> None:
        self._file = ParquetFile(_schema, {"headrace.export": export_id, "headrace.redaction_level": level.value})
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def add(self, lines: Sequence[dict[str, Any]]) -> bytes:
        for line in lines:
            try:
                row = _parquet_row(line)
            except TypeError:  # as for lines of JSON
                row = _parquet_row(_encodable(line))
            self._rows.append(row)
            self._characters += sum(len(one["content"] or "") + len(one["parts"] or "") for one in row["messages"])
        if len(self._rows) < GROUP_ROWS and self._characters < GROUP_CHARACTERS:
            return self._file.add(())
        return self._write()

    def end(self, rows: int) -> bytes:
        return self._write() + self._file.end()

    def _write(self) -> bytes:
        rows, self._rows, self._characters = self._rows, [], 0
        try:
            return self._file.add(rows)
        except UnicodeEncodeError:
            return self._file.add([_encodable(row) for row in rows])


def _schema() -> pyarrow.Schema:
    import pyarrow

    text, whole, flag = pyarrow.string(), pyarrow.int64(), pyarrow.bool_()
    moment = pyarrow.timestamp("us", tz="UTC")
    message = pyarrow.struct(
        {"role": text, "content": text, "parts": text, "name": text, "tool_calls": text, "tool_call_id": text}
    )
    feedback = pyarrow.struct({"metric": text, "value": text, "tags": pyarrow.list_(text)})
    score = pyarrow.struct({"rubric": text, "score": pyarrow.float64(), "judge_model": text})
    return pyarrow.schema(
        {
            "messages": pyarrow.list_(message), "tools": text, "model": text, "job_id": text, "created_at": moment,
            "ended_at": moment, "project": text, "user": text, "conversation": text, "batch": text, "route": text,
            "status": text, "error_code": text, "finish_reason": text, "first_token_ms": whole, "total_ms": whole,
            "input_tokens": whole, "output_tokens": whole, "answered_by_other": flag, "refused": flag,
            "refusal_source": text, "feedback": pyarrow.list_(feedback), "scores": pyarrow.list_(score),
            "redaction_level": text,
        }
    )  # fmt: skip


def _parquet_row(line: dict[str, Any]) -> dict[str, Any]:
    metadata = dict(line["metadata"])
    feedback = [{**one, "value": _json(one["value"])} for one in metadata["feedback"]]
    moments = {name: _moment(metadata[name]) for name in ("created_at", "ended_at")}
    return {
        **metadata,
        **moments,
        "messages": [_parquet_message(message) for message in line["messages"]],
        "tools": _json(line.get("tools")),
        "model": line["model"],
        "feedback": feedback,
        "redaction_level": metadata["headrace"]["redaction_level"],
    }


def _parquet_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a row has it: a content of several parts as their text, and all of the parts as JSON."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    if parts is not None:
        content = "\n".join(part.get("text") or "" for part in parts if part.get("type") == "text")
    return {**message, "content": content, "parts": _json(parts), "tool_calls": _json(message.get("tool_calls"))}


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _moment(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)
