"""One line per event, as text for people or as JSON for collectors.

What is known by name stands in a message's template as `name=%s`, before or after its words: these become fields of a
JSON line, and `name=value` in a text line. Ids and numbers are named so; a prompt, an output or a key never is.

Prompts get into logs by errors: pydantic, asyncpg, upstreams and models quote what they were given. So once a process
serves (`requests_come`), an error is logged by its type and the places that it came through, without its words, but for
those of the network and the system (`TOLD`), which know no request.
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
# Errors that are logged in their own words while requests are in hand.
TOLD = (OSError, RedisError)
_FIELD = re.compile(r"(\w+)=%(?:\.\d+)?[sdf]")
_BEFORE = re.compile(r"(?:\w+=%(?:\.\d+)?[sdf] )*")
_AFTER = re.compile(r"(?: \w+=%(?:\.\d+)?[sdf])*$")
_PLAIN = re.compile(r"[^\s\"=]+")

_requests_come = False


def requests_come() -> None:
    """From now on this process has prompts in hand, which an error may quote."""
    global _requests_come
    _requests_come = True


def configure_logging(level: str, form: str) -> None:
    """Send every logger's lines to stderr, in one of `FORMATS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # Celery's two lines for each task; a job's own say more.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)


class Line(NamedTuple):
    """What a record says: fields before its words, the words, and fields after them."""

    before: list[tuple[str, Any]]
    words: str
    after: list[tuple[str, Any]]


class _Lines(logging.Formatter):
    """Takes records apart."""

    def line(self, record: logging.LogRecord) -> Line:
        if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
            return Line([], record.getMessage(), [])
        arguments = tuple(_told(item) if isinstance(item, BaseException) else item for item in record.args)
        before, words, after = _template(record.msg)
        end = len(arguments) - len(after)
        within = arguments[len(before) : end]
        text = words % within if record.args else words
        if record.name == "asyncio" and _requests_come:
            text = text.partition("\n")[0]  # what follows has the error's words
        return Line(
            list(zip(before, arguments, strict=False)), text, list(zip(after, arguments[max(0, end) :], strict=False))
        )

    def trace(self, record: logging.LogRecord) -> str | None:
        """The record's error and what caused it."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return None
        return _places(error) if _requests_come else "".join(traceback.format_exception(error)).rstrip()


class TextLines(_Lines):
    """`2026-01-01T00:00:00.000 INFO workers.execution.attempt job=job_1 started`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        before, words, after = self.line(record)
        time_ = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}"
        parts = (time_, record.levelname, record.name, *_pairs(before), words, *_pairs(after))
        text = " ".join(part for part in parts if part)
        trace = self.trace(record)
        return f"{text}\n{trace}" if trace else text


class JsonLines(_Lines):
    """`{"time":"2026-01-01T00:00:00.000Z","level":"info","logger":...,"message":...}` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        before, words, after = self.line(record)
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": words,
        }
        line |= {name: value for name, value in (*before, *after) if value is not None}
        if trace := self.trace(record):
            line["error"] = trace
        return orjson.dumps(line, default=str).decode()


@lru_cache(maxsize=1000)
def _template(template: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The fields' names before a template's words, the words' template, the names after them."""
    before = _BEFORE.match(template)
    head = before[0] if before else ""
    rest = template[len(head) :]
    after = _AFTER.search(rest)
    tail = after[0] if after else ""
    words = rest[: len(rest) - len(tail)]
    return tuple(_FIELD.findall(head)), words, tuple(_FIELD.findall(tail))


def _pairs(fields: Iterable[tuple[str, Any]]) -> Iterable[str]:
    for name, value in fields:
        if value is not None:
            text = str(value)
            yield f"{name}={text if _PLAIN.fullmatch(text) else orjson.dumps(text).decode()}"


def _told(error: BaseException) -> Any:
    """An error as a line may have it."""
    if not _requests_come or isinstance(error, TOLD):
        return error
    if isinstance(error, Unavailable) and error.__cause__ is not None:
        return f"{type(error).__name__}({_told(error.__cause__)})"
    # SQLAlchemy's errors say little by their type; the database's own code says it all.
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None)
    name = type(error).__name__
    return f"{name}({type(cause).__name__}{f', SQLSTATE {state}' if state else ''})" if cause is not None else name


def _places(error: BaseException) -> str:
    """Errors, the last one's causes before it, and through which places each came."""
    lines: list[str] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        told = _told(current)
        name = f"{type(current).__name__}: {told}" if isinstance(told, BaseException) else told
        frames = [
            f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(current.__traceback__)
        ]
        lines[:0] = [name, *frames]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(lines)
