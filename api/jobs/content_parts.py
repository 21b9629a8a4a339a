"""Images and files in the notations of OpenAI's chat completions, converted to parts of a content.

Only the notation is read here; `api.jobs.media_check` checks types, data and sizes.
"""

from __future__ import annotations

import mimetypes
from typing import Any, Literal

from pydantic import BaseModel

from shared.domain.content import ContentPart, FilePart, ImageDetail, ImagePart, TextPart
from shared.domain.field_types import UnicodeText

# A data URL has its media type within this many characters.
_MAX_DATA_HEADER = 200
# The first characters of a PDF in base64.
_PDF = "JVBERi"


class InputText(BaseModel):
    """A text in a message's content, under the names of all of OpenAI's APIs."""

    type: Literal["text", "input_text", "output_text"] = "text"
    text: UnicodeText


class RefusalPart(BaseModel):
    """An assistant's refusal in an earlier turn, which is a text as well."""

    type: Literal["refusal"]
    refusal: UnicodeText


class ImageUrl(BaseModel):
    """An image: a data URL, or a URL that the model's provider fetches."""

    url: UnicodeText
    detail: ImageDetail | None = None


class InputImage(BaseModel):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class FileSource(BaseModel):
    """A file: as a data URL, as base64 with a name, or as the id of a file that the model's provider has."""

    file_data: str | None = None
    file_id: UnicodeText | None = None
    filename: UnicodeText | None = None


class InputFile(BaseModel):
    """A file."""

    type: Literal["file"]
    file: FileSource


ChatContent = UnicodeText | list[InputText | RefusalPart | InputImage | InputFile]


def read_content(content: Any) -> Any:
    """Convert a list of parts: to a text if all are texts, joined with line breaks as vLLM does, else to domain parts.

    Raises:
        ValueError: a part is not supported; names its position.
    """
    if not isinstance(content, list):
        return content
    parts = [_read(part, position) for position, part in enumerate(content)]
    if all(isinstance(part, str) for part in parts):
        return "\n".join(parts)
    return [TextPart(type="text", text=part) if isinstance(part, str) else part for part in parts]


def _read(part: Any, position: int) -> Any:
    match part:
        case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case {"text": str(text)} if "type" not in part:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)} as image}:
            return _part(ImagePart, position, "image_url.url", url, detail=image.get("detail"))
        case {"type": "image_url", "image_url": str(url)}:
            return _part(ImagePart, position, "image_url", url)
        case {"type": "file", "file": {"file_id": str(file_id)} as file} if "file_data" not in file:
            return FilePart.model_validate({"type": "file", "file_id": file_id, "filename": file.get("filename")})
        case {"type": "file", "file": {"file_data": str(data)} as file} if "file_id" not in file:
            return _part(FilePart, position, "file.file_data", data, filename=file.get("filename"))
        case {"type": "text" | "input_text" | "output_text"}:
            raise ValueError(f"content part {position}: text must be a string")
        case {"type": "file"}:
            raise ValueError(f"content part {position}: a file has either file_data or file_id")
    kind = part.get("type") if isinstance(part, dict) else None
    raise ValueError(
        f"content part {position} is not supported ({str(kind)[:64]!r}); parts are text, image_url and file"
    )


def _part(kind: type[ImagePart | FilePart], position: int, field: str, url: str, **more: Any) -> ImagePart | FilePart:
    try:
        source = url_source(url, filename=more.get("filename"))
    except ValueError as error:
        raise ValueError(f"content part {position}: {field} {error}") from None
    name = "image" if kind is ImagePart else "file"
    return kind.model_validate({"type": name, **source, **more})


def url_source(url: str, *, filename: str | None = None) -> dict[str, str]:
    """The members of a part for a URL: the data of a data URL, or the URL. A file may also be plain base64.

    Raises:
        ValueError: it is neither.
    """
    scheme = url[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return {"url": url}
    if scheme.startswith("data:"):
        comma = url.find(",", 0, _MAX_DATA_HEADER)
        media_type, *parameters = url[len("data:") : max(comma, 0)].split(";")
        if comma < 0 or not media_type or not parameters or parameters[-1].strip().lower() != "base64":
            raise ValueError("must be a data URL of base64, such as data:image/png;base64,...")
        return {"media_type": media_type.strip().lower(), "data": url[comma + 1 :]}
    if filename is not None or url.startswith(_PDF):
        guessed = "application/pdf" if url.startswith(_PDF) else mimetypes.guess_type(filename or "")[0]
        if guessed is not None:
            return {"media_type": guessed, "data": url}
    raise ValueError("must be a data URL or an http(s) URL")


def with_path(content: str | list[ContentPart] | None, path: str) -> str | list[ContentPart] | None:
    """Note on the images and files of a content where the client sent them: at `path`, as its list of parts."""
    if not isinstance(content, list):
        return content
    return [
        part if isinstance(part, TextPart) else part.model_copy(update={"path": f"{path}[{position}]"})
        for position, part in enumerate(content)
    ]
