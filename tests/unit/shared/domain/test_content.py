"""Contents of several parts: stored, measured, and without parts for what takes text only."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.request import GenerateRequest, Message
from shared.prompts.token_counter import count_words, is_plain

IMAGE = ImagePart(type="image", media_type="image/png", data="iVBORw0KGgo=", detail="low")
FILE = FilePart(type="file", url="https://example.com/a.pdf", filename="a.pdf")
PARTS = [TextPart(type="text", text="What is"), IMAGE, TextPart(type="text", text="this?"), FILE]


def test_a_stored_content_of_parts() -> None:
    request = GenerateRequest(messages=[Message(role="user", content=PARTS)])
    stored = request.model_dump_json(exclude_none=True, exclude_defaults=True)
    assert GenerateRequest.model_validate_json(stored) == request
    assert request.size == pytest.approx(len(stored), rel=0.9)
    assert not is_plain(request)


def test_the_texts_of_a_content() -> None:
    message = Message(role="user", content=PARTS)
    assert (message.texts, message.text, message.media) == (["What is", "this?"], "What is\nthis?", [IMAGE, FILE])
    texts = Message(role="user", content=PARTS[::2])
    assert is_plain(GenerateRequest(messages=[texts]))
    joined = GenerateRequest(messages=[Message(role="user", content="What is\nthis?")])
    assert count_words(GenerateRequest(messages=[texts])) == count_words(joined)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "data": "aaaa"},
        {"type": "image", "data": "aaaa", "media_type": "image/png", "url": "https://a.b"},
        {"type": "video", "url": "https://a.b"},
        {"url": "https://a.b"},
    ],
)
def test_a_part_has_one_source(part: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "user", "content": [part]})
