"""Makes the body for the request log from what the rows of a job have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from shared.domain.log_level import LogLevel
from shared.runtime import chunked_json
from shared.runtime.offload import INLINE_BYTES


class BodyRedactor(Protocol):
    """Replaces personal data and secrets in all strings: `shared.privacy.redaction.Redactor`."""

    def redact_body(self, body: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, int]]:
        """Return the redacted body, and the numbers of what was replaced, by kind."""


@dataclass(frozen=True, slots=True)
class JobContent:
    """The content of an ended job, as JSON texts. `output`: None if there is none."""

    request: str
    output: str | None
    metadata: str
    error_message: str | None

    @property
    def size(self) -> int:
        """About the bytes, which indicate the time that it takes to process them."""
        return len(self.request) + len(self.output or "") + len(self.metadata)


@dataclass(frozen=True, slots=True)
class BodyText:
    """A body as JSON, and the number of texts that redaction has replaced in it."""

    text: bytes
    redactions: int = 0


def body_text(content: JobContent, level: LogLevel, redactor: BodyRedactor | None) -> BodyText:
    """The body that a level keeps: the members of `api.request_log.bodies.Body` that are not columns.

    Raises:
        ValueError: the texts are no JSON of a job, or there is no redactor for a level that needs one.
    """
    body: dict[str, Any] = {"request": _loads(content.request), "output": _loads(content.output or "[]")}
    if content.metadata not in ("", "{}"):
        body["metadata"] = _loads(content.metadata)
    if content.error_message is not None:
        body["error_message"] = content.error_message
    redactions: Mapping[str, int] = {}
    if level is not LogLevel.FULL:
        if redactor is None:
            raise ValueError(f"there is no redactor for the level {level}")
        body, redactions = redactor.redact_body(body)
        body["redactions"] = {str(kind): count for kind, count in redactions.items()}
    return BodyText(_dumps(body, content.size), sum(redactions.values()))


def _loads(text: str) -> Any:
    return orjson.loads(text) if len(text) <= INLINE_BYTES else chunked_json.loads(text)


def _dumps(body: dict[str, Any], size: int) -> bytes:
    return orjson.dumps(body) if size <= INLINE_BYTES else b"".join(chunked_json.dump_pieces(body))
