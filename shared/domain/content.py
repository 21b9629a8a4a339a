"""The parts of a message's content: texts, images and files.

Images and files are passed on to the model's provider: as base64, as a URL that the provider fetches, or as the id of a
file that the provider has. Headrace fetches nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from shared.domain.field_types import UnicodeText, contradiction

# Names that clients use for a media type beside the registered one.
_SYNONYMS = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "application/x-pdf": "application/pdf"}
ImageDetail = Literal["auto", "low", "high", "original"]


class TextPart(BaseModel):
    """A text."""

    model_config = ConfigDict(extra="forbid")

    # The types have no defaults, because defaults are not stored.
    type: Literal["text"]
    text: UnicodeText

    @property
    def size(self) -> int:
        """About the bytes of the part as JSON."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8", "surrogatepass"))


class _MediaPart(BaseModel):
    """Exactly one of `data` (base64, with its `media_type`), `url` and `file_id` is set.

    `path`: where the client sent the part, for error messages. It is not stored.
    """

    model_config = ConfigDict(extra="forbid")

    media_type: Annotated[str, AfterValidator(lambda name: _SYNONYMS.get(name, name))] | None = None
    data: str | None = None
    url: UnicodeText | None = None
    file_id: UnicodeText | None = None
    path: str = Field("", exclude=True, repr=False)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.data, self.url, self.file_id)) != 1:
            raise contradiction("data", "exactly one of data, url and file_id is required")
        if self.data is not None and self.media_type is None:
            raise contradiction("media_type", "media_type is required with data")
        return self

    @property
    def source(self) -> Literal["data", "url", "file_id"]:
        """Which of the three is set."""
        return "data" if self.data is not None else "url" if self.url is not None else "file_id"

    @property
    def size(self) -> int:
        """About the bytes of the part as JSON."""
        return len(self.data or self.url or self.file_id or "")


class ImagePart(_MediaPart):
    """An image. `detail` is OpenAI's hint at how closely the model looks."""

    type: Literal["image"]
    detail: ImageDetail | None = None


class FilePart(_MediaPart):
    """A document. One that is a plain text has the media type `text/plain`."""

    type: Literal["file"]
    filename: UnicodeText | None = None
    # What Anthropic's API tells the model about a document.
    context: UnicodeText | None = None


ContentPart = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]
# A content: one text, or parts. Tags in <> are omitted from the field names in errors.
Content = Annotated[
    Annotated[UnicodeText, Tag("<text>")] | Annotated[list[ContentPart], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(lambda content: "<parts>" if isinstance(content, list) else "<text>"),
]
