"""One line per event, as text for people or as JSON for collectors.

A `name=%s` at the start or the end of a message's template is a field: a field of the JSON line, `name=value` in the
text line. Fields are ids and numbers, never prompts, outputs or keys.

Prompts get into logs through errors: pydantic, asyncpg, upstreams and models quote their input. So once a process
serves requests (`redact_errors`), an error is logged as its type and its stack frames, without its message. Messages
of network and system errors are kept (`SAFE_ERRORS`): they contain no part of a request.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from redis.exceptions import RedisError

from shared.domain.errors import Unavailable

FORMATS = ("text", "json")
# Errors whose messages are never redacted.
SAFE_ERRORS = (OSError, RedisError)
_TIME = "%Y-%m-%dT%H:%M:%S"
_FIELD = re.compile(r"(\w+)=%(?:\.\d+)?[sdf]")
_BEFORE = re.compile(r"(?:\w+=%(?:\.\d+)?[sdf] )*")
_AFTER = re.compile(r"(?: \w+=%(?:\.\d+)?[sdf])*$")
_PLAIN = re.compile(r"[^\s\"=]+")

_redacting = False


def redact_errors() -> None:
    """Omit errors' messages from now on: the process is about to serve requests, which errors may quote."""
    global _redacting
    _redacting = True


def configure_logging(level: str, log_format: str) -> None:
    """Write all loggers' lines to stderr, in one of `FORMATS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # No line has what these find out: "Optimization" in Python's logging HOWTO.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # They log the URL of each request, which may have a secret of a webhook's receiver, and the headers of its answer.
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Celery logs two lines for each task; the job's own lines contain more.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    # kombu warns when a worker that stops puts back a message that it has just received.
    logging.getLogger("kombu.transport.virtual.base").setLevel(logging.ERROR)


class Line(NamedTuple):
    """The parts of a record: the fields before its text, the text, and the fields after it."""

    before: list[tuple[str, Any]]
    text: str
    after: list[tuple[str, Any]]


class _Lines(logging.Formatter):
    """Splits records into their parts."""

    def line(self, record: logging.LogRecord) -> Line:
        if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
            return Line([], record.getMessage(), [])
        arguments = tuple(_redacted(item) if isinstance(item, BaseException) else item for item in record.args)
        before, template, after = _split(record.msg)
        end = len(arguments) - len(after)
        within = arguments[len(before) : end]
        text = template % within if record.args else template
        if record.name == "asyncio" and _redacting:
            text = text.partition("\n")[0]  # the other lines contain the error's message
        return Line(
            list(zip(before, arguments, strict=False)), text, list(zip(after, arguments[max(0, end) :], strict=False))
        )

    def trace(self, record: logging.LogRecord) -> str | None:
        """The record's error with its causes."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return None
        return _frames(error) if _redacting else "".join(traceback.format_exception(error)).rstrip()


class TextLines(_Lines):
    """`2026-01-01T00:00:00.000 INFO workers.execution.attempts.log job=job_1 started`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        before, text, after = self.line(record)
        time_ = f"{_local_time(int(record.created))}.{int(record.msecs):03d}"
        parts = (time_, record.levelname, record.name, *_pairs(before), text, *_pairs(after))
        line = " ".join(part for part in parts if part)
        trace = self.trace(record)
        return f"{line}\n{trace}" if trace else line


class JsonLines(_Lines):
    """`{"time":"2026-01-01T00:00:00.000Z","level":"info","logger":...,"message":...}`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        before, text, after = self.line(record)
        line: dict[str, Any] = {
            "time": f"{_utc(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": text,
        }
        line |= {name: value for name, value in (*before, *after) if value is not None}
        if trace := self.trace(record):
            line["error"] = trace
        return orjson.dumps(line, default=str).decode()


# Many lines are written in the same second.
@lru_cache(maxsize=8)
def _local_time(second: int) -> str:
    return time.strftime(_TIME, time.localtime(second))


@lru_cache(maxsize=8)
def _utc(second: int) -> str:
    return time.strftime(_TIME, time.gmtime(second))


@lru_cache(maxsize=1000)
def _split(template: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The names of the fields before the text, the text's template, and the names of the fields after it."""
    before = _BEFORE.match(template)
    head = before[0] if before else ""
    rest = template[len(head) :]
    after = _AFTER.search(rest)
    tail = after[0] if after else ""
    text = rest[: len(rest) - len(tail)]
    return tuple(_FIELD.findall(head)), text, tuple(_FIELD.findall(tail))


def _pairs(fields: Iterable[tuple[str, Any]]) -> Iterable[str]:
    for name, value in fields:
        if value is not None:
            text = str(value)
            yield f"{name}={text if _PLAIN.fullmatch(text) else orjson.dumps(text).decode()}"


def _redacted(error: BaseException) -> Any:
    """What a line may contain of an error: the error itself, or its type."""
    if not _redacting or isinstance(error, SAFE_ERRORS):
        return error
    if isinstance(error, Unavailable) and error.__cause__ is not None:
        return f"{type(error).__name__}({_redacted(error.__cause__)})"
    # The type of an SQLAlchemy error is unspecific; the database's error code is not.
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None)
    name = type(error).__name__
    return f"{name}({type(cause).__name__}{f', SQLSTATE {state}' if state else ''})" if cause is not None else name


def _frames(error: BaseException) -> str:
    """An error after its causes, each followed by its stack frames."""
    lines: list[str] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        redacted = _redacted(current)
        name = f"{type(current).__name__}: {redacted}" if isinstance(redacted, BaseException) else redacted
        frames = [
            f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(current.__traceback__)
        ]
        lines[:0] = [name, *frames]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(lines)
