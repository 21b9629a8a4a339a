"""What a stand-in does with one request for an answer, in terms that no vendor owns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from shared.domain.job import ToolCall, Usage

USAGE = Usage(7, 0, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One answer, or an error in its place.

    `text` and `reasoning` are sent in these pieces: reasoning first, then text, then `calls`. After `fail_after`,
    `cut_after` or `hang_after` pieces of text, the stand-in reports an error in its answer, closes the connection, or
    sends nothing more until its client leaves. The answer may be complete by then: it lacks its end.

    `status` other than 200: an error with `message`, and with the header Retry-After if `retry_after` is set. 300 to
    399: a redirect to another host.
    `before`: awaited before the first byte of the answer.
    `split`: each byte of the body is written by itself. `noise`: events, fields and comments that no client knows.
    `html`: a page of status 200 in place of the answer.
    """

    text: tuple[str, ...] = ("Hi ", "there")
    reasoning: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    finish: Literal["stop", "length", "tool_calls", "content_filter"] = "stop"
    usage: Usage = USAGE
    status: int = 200
    message: str = "the reason"
    retry_after: str | None = None
    fail_after: int | None = None
    cut_after: int | None = None
    hang_after: int | None = None
    before: asyncio.Event | None = None
    split: bool = False
    noise: bool = False
    html: bool = False
