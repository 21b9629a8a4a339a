"""Messages of stored requests as clients send them."""

from __future__ import annotations

from typing import Any

from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.request import Message


def message_body(message: Message) -> dict[str, Any]:
    """The message as a member of `messages`."""
    values = message.model_dump(exclude_none=True, exclude={"content"})
    content = message.content
    if content is not None:
        shown = content if isinstance(content, str) else [_part(part) for part in content]
        values = {"role": values.pop("role"), "content": shown, **values}
    return values


def _part(part: TextPart | ImagePart | FilePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = f"data:{part.media_type};base64,{part.data}" if part.data is not None else part.url
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": url, **({"detail": part.detail} if part.detail else {})}}
    named = {"filename": part.filename} if part.filename is not None else {}
    if part.file_id is not None:
        return {"type": "file", "file": {"file_id": part.file_id, **named}}
    return {"type": "file", "file": {"file_data": url, **named}}
