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

    Of `redacted` bodies, what redaction cannot read is left out: images and files, token ids, log probabilities (which
    have the answer in pieces), and the opaque parts of providers.

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
        remove_unreadable(body)
        body, redactions = redactor.redact_body(body)
        body["redactions"] = dict(redactions)
    return BodyText(_dumps(body, content.size), sum(redactions.values()))


def remove_unreadable(body: dict[str, Any]) -> None:
    """Remove from a body what redaction cannot read. Media become texts that say what was there."""
    request = body["request"]
    if isinstance(request.get("prompt"), list):
        request["prompt"] = f"[{len(request['prompt'])} token ids]"
    for message in request.get("messages") or ():
        message.pop("opaque", None)
        if isinstance(message.get("content"), list):
            message["content"] = [_without_data(part) for part in message["content"]]
    for choice in body["output"]:
        for name in ("logprobs", "prompt_logprobs", "opaque"):
            choice.pop(name, None)


def _without_data(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") == "text":
        return part
    names = (part.get(name) for name in ("type", "media_type", "filename", "url", "file_id"))
    what = " ".join(str(name) for name in names if name)
    size = f", {len(part['data']) * 3 // 4} bytes" if part.get("data") is not None else ""
    return {"type": "text", "text": f"[{what}{size}]"}


def _loads(text: str) -> Any:
    return orjson.loads(text) if len(text) <= INLINE_BYTES else chunked_json.loads(text)


def _dumps(body: dict[str, Any], size: int) -> bytes:
    return orjson.dumps(body) if size <= INLINE_BYTES else b"".join(chunked_json.dump_pieces(body))
