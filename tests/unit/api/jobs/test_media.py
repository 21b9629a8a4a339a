"""Images, files and parameters of providers in requests: what each dialect reads, and what is rejected where."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from api.anthropic.requests import generate_request
from api.anthropic.schemas import MessagesRequest
from api.context.window import ContextWindow
from api.http.members import Shape
from api.http.validation import describe
from api.jobs.admission import Admission
from api.jobs.media_check import MAX_PARTS, MediaLimits
from api.jobs.schemas import JobCreate
from api.openai.schemas import ChatCompletionRequest
from api.responses.messages import conversation
from api.responses.schemas import ResponseCreate
from api.responses.stored_media import is_stored, with_data
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel
from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest
from tests.support.members import member_reader, read

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff" + bytes(20)).decode()
GIF = base64.b64encode(b"GIF89a" + bytes(20)).decode()
WEBP = base64.b64encode(b"RIFF\0\0\0\0WEBPVP8 ").decode()
PDF = base64.b64encode(b"%PDF-1.7 " + bytes(20)).decode()
URL = "https://example.com/a.png"
TEXT = TextPart(type="text", text="What is this?")
Dialect = Callable[[list[Any]], GenerateRequest]


def model(name: str, modalities: Any = (), extra_body: Any = (), **entry: Any) -> OpenAIModel:
    options = {"base_url": "http://localhost:1/v1", "extra_body": list(extra_body)}
    return OpenAIModel.model_validate(
        {"name": name, "engine": "openai", "model": "m", "modalities": list(modalities), "options": options, **entry}
    )


MODELS = [
    model("text"),
    # Chat Completions takes neither images by id nor files by URL.
    model("sees", modalities=["image"], extra_body=["top_a", "safety_settings"], api="responses"),
    model("reads", modalities=["text", "image", "file"], api="responses"),
]
REGISTRY = Registry({spec.name: spec for spec in MODELS})


async def admit(request: GenerateRequest, name: str = "reads", *, each: int = 1000, together: int = 2000) -> None:
    await Admission(REGISTRY, ContextWindow(REGISTRY), media=MediaLimits(each, together)).check(name, request)


def chat(content: list[Any]) -> GenerateRequest:
    body = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": content}]}
    (request,) = read(ChatCompletionRequest, body).generate_requests()
    return request


def job(content: list[Any]) -> GenerateRequest:
    body = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": content}]}
    return read(JobCreate, body).generate_request()


def message(content: list[Any]) -> GenerateRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    return generate_request(read(MessagesRequest, body))


def response(content: list[Any]) -> GenerateRequest:
    body = read(ResponseCreate, response_body(content))
    return body.generate_request(conversation(None, None, body.input))


def response_body(content: list[Any]) -> dict[str, Any]:
    return {"model": "m", "input": [{"role": "user", "content": content}]}


def part_of(request: GenerateRequest) -> tuple[str, dict[str, Any]]:
    """The path and the fields of the only image or file."""
    (part,) = (request.messages or [])[-1].media
    return part.path, part.model_dump(exclude_none=True)


IMAGE = {"type": "image", "media_type": "image/png", "data": PNG}
FILE = {"type": "file", "media_type": "application/pdf", "data": PDF, "filename": "a.pdf"}
CHAT_PARTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}, IMAGE),
    ({"type": "image_url", "image_url": {"url": f"data:IMAGE/PNG;charset=x;base64,{PNG}"}}, IMAGE),
    ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, {"type": "image", "url": URL, "detail": "low"}),
    ({"type": "image_url", "image_url": URL}, {"type": "image", "url": URL}),
    ({"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}}, FILE),
    ({"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}}, FILE),
    ({"type": "file", "file": {"file_id": "file-1"}}, {"type": "file", "file_id": "file-1"}),
]
MESSAGE_PARTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}, IMAGE),
    ({"type": "image", "source": {"type": "url", "url": URL}}, {"type": "image", "url": URL}),
    ({"type": "image", "source": {"type": "file", "file_id": "f1"}}, {"type": "image", "file_id": "f1"}),
    (
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "a.pdf",
            "context": "c",
        },
        {**FILE, "context": "c"},
    ),
    (
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grüße"}},
        {"type": "file", "media_type": "text/plain", "data": base64.b64encode("Grüße".encode()).decode()},
    ),
    ({"type": "document", "source": {"type": "url", "url": URL}}, {"type": "file", "url": URL}),
    ({"type": "document", "source": {"type": "file", "file_id": "f1"}}, {"type": "file", "file_id": "f1"}),
]
RESPONSE_PARTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"},
     {**IMAGE, "detail": "auto"}),
    ({"type": "input_image", "image_url": URL}, {"type": "image", "url": URL}),
    ({"type": "input_image", "file_id": "file-1"}, {"type": "image", "file_id": "file-1"}),
    ({"type": "input_file", "file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}, FILE),
    ({"type": "input_file", "file_url": URL}, {"type": "file", "url": URL}),
    ({"type": "input_file", "file_id": "file-1"}, {"type": "file", "file_id": "file-1"}),
]  # fmt: skip
ALL = [
    *(pytest.param(chat, "messages[1].content[1]", "text", *case, id=f"chat-{n}") for n, case in enumerate(CHAT_PARTS)),
    *(pytest.param(job, "messages[1].content[1]", "text", *case, id=f"job-{n}") for n, case in enumerate(CHAT_PARTS)),
    *(
        pytest.param(message, "messages[0].content[1]", "text", *case, id=f"message-{n}")
        for n, case in enumerate(MESSAGE_PARTS)
    ),
    *(
        pytest.param(response, "input[0].content[1]", "input_text", *case, id=f"response-{n}")
        for n, case in enumerate(RESPONSE_PARTS)
    ),
]


@pytest.mark.parametrize(("dialect", "path", "text_type", "sent", "expected"), ALL)
async def test_parts(
    dialect: Dialect, path: str, text_type: str, sent: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Each notation becomes the same part; a model without the modality is refused by its path."""
    request = dialect([{"type": text_type, "text": "What is this?"}, sent])
    assert request.messages is not None
    assert isinstance(request.messages[-1].content, list)
    assert request.messages[-1].content[0] == TEXT
    assert part_of(request) == (path, expected)
    await admit(request)
    with pytest.raises(InvalidRequest) as refused:
        await admit(request, "text")
    able = "sees, reads" if expected["type"] == "image" else "reads"
    assert refused.value.param == path
    assert refused.value.message == (
        f"{path}: the model `text` does not support {expected['type']}s; models that can serve this request: {able}"
    )


@pytest.mark.parametrize(
    ("dialect", "content", "text"),
    [
        (chat, [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        (message, [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        (response, [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], "ab"),
    ],
)
def test_texts_alone_are_one_text_as_before(dialect: Dialect, content: list[Any], text: str) -> None:
    assert (dialect(content).messages or [])[-1].content == text


async def test_images_in_results_of_tools() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    body: dict[str, Any] = {
        "model": "m",
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [image]}]},
        ],
    }
    request = generate_request(read(MessagesRequest, body))
    assert part_of(request) == ("messages[2].content[0].content[0]", IMAGE)
    await admit(request)

    items = [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "x"}, RESPONSE_PARTS[0][0]],
        },
    ]
    parsed = read(ResponseCreate, {"model": "m", "input": items})
    request = parsed.generate_request(conversation(None, None, parsed.input))
    assert part_of(request)[0] == "input[1].output[1]"


@pytest.mark.parametrize(
    ("media_type", "data", "words"),
    [
        ("image/png", JPEG, "the data is image/jpeg, but the media type is image/png"),
        ("image/webp", PNG, "the data is image/png, but the media type is image/webp"),
        ("image/gif", base64.b64encode(b"hello world").decode(), "the data is something else"),
        ("image/bmp", PNG, "the media type 'image/bmp' is not supported; supported are image/png, image/jpeg"),
        ("image/png", PNG[:-1] + "*", "the data is not base64"),
        ("image/png", PNG[:-1], "the data is not base64"),
        ("image/png", PNG + "\n", "the data is not base64"),
        ("image/png", "", "the data is empty"),
        ("image/png", base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(1000)).decode(), "has 1008 bytes; the maximum is"),
    ],
)
async def test_damaged_images(media_type: str, data: str, words: str) -> None:
    part = {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
    with pytest.raises(InvalidRequest) as refused:
        await admit(message([part]))
    assert refused.value.param == "messages[0].content[0]"
    assert refused.value.message.startswith(f"messages[0].content[0]: {words}")


async def test_a_request_with_too_many_images() -> None:
    """A small body may have a hundred thousand of them."""
    parts = [{"type": "image_url", "image_url": "http://a"}] * (MAX_PARTS + 1)
    with pytest.raises(InvalidRequest, match=f"a request may have {MAX_PARTS} images and files"):
        await admit(chat(parts))
    await admit(chat(parts[1:]))


@pytest.mark.parametrize(
    ("media_type", "data"),
    [("image/jpeg", JPEG), ("image/jpg", JPEG), ("image/gif", GIF), ("image/webp", WEBP), ("image/png", PNG)],
)
async def test_types_of_images(media_type: str, data: str) -> None:
    await admit(chat([{"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}]))


@pytest.mark.parametrize(
    ("media_type", "data", "words"),
    [
        ("application/zip", PDF, "the media type 'application/zip' is not supported"),
        ("application/pdf", PNG, "the data is image/png"),
        ("text/plain", PNG, "the data is image/png"),
        ("text/csv", base64.b64encode(b"a,b").decode(), None),
        ("application/json", base64.b64encode(b"{}").decode(), None),
        # Texts may begin as images do, or be empty.
        ("text/plain", GIF, None),
        ("text/markdown", base64.b64encode(b"RIFF1234WEBP is a format").decode(), None),
        ("text/plain", "", None),
        ("text/plain", JPEG, "the data is image/jpeg"),
        ("application/json", GIF, "the data is image/gif"),
        ("application/json", "", "the data is empty"),
    ],
)
async def test_types_of_files(media_type: str, data: str, words: str | None) -> None:
    request = chat([{"type": "file", "file": {"file_data": f"data:{media_type};base64,{data}", "filename": "x"}}])
    if words is None:
        await admit(request)
    else:
        with pytest.raises(InvalidRequest, match=words):
            await admit(request)


async def test_the_size_of_all_parts() -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(900)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    await admit(chat([part] * 2))
    with pytest.raises(InvalidRequest) as refused:
        await admit(chat([part] * 3))
    assert refused.value.param == "messages[1].content[2]"
    assert "2000 bytes together" in refused.value.message


async def test_large_data_is_checked_to_its_end() -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(1_000_000)).decode()
    for broken in (data[:-8] + "!" + data[-7:], data[:400_000] + "====" + data[400_000:]):
        with pytest.raises(InvalidRequest, match="not base64"):
            await admit(
                chat([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{broken}"}}]),
                each=10**7,
                together=10**7,
            )


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "/a.png", "", "data:image/png,abc", "data:,"])
@pytest.mark.parametrize("dialect", [chat, message, response])
async def test_other_urls_are_refused(dialect: Dialect, url: str) -> None:
    parts: dict[Any, dict[str, Any]] = {
        chat: {"type": "image_url", "image_url": {"url": url}},
        message: {"type": "image", "source": {"type": "url", "url": url}},
        response: {"type": "input_image", "image_url": url},
    }
    with pytest.raises((InvalidRequest, ValidationError), match=r"http|image_url|data"):
        await admit(dialect([parts[dialect]]))


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "input_audio", "data": "x"}]}]}),
        (ChatCompletionRequest, {"messages": [{"role": "assistant", "content": [CHAT_PARTS[0][0]]}]}),
        (ChatCompletionRequest, {"messages": [{"role": "system", "content": [CHAT_PARTS[0][0]]}]}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}),
        (ResponseCreate, {"input": [{"role": "user", "content": [{"type": "input_audio", "data": "x"}]}]}),
        (ResponseCreate, {"input": [{"role": "assistant", "content": [RESPONSE_PARTS[0][0]]}]}),
        (ResponseCreate, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
    ],
)  # fmt: skip
def test_parts_that_no_model_takes(schema: Any, body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="content"):
        read(schema, {"model": "m", **body})


def test_data_of_input_items_is_stored_once() -> None:
    parts = [part for part, _ in RESPONSE_PARTS]
    body = read(ResponseCreate, response_body(parts))
    messages = conversation(None, None, body.input)
    given = [item.model_dump(mode="json", exclude_none=True) for item in body.input]
    stored = body.facts().input
    assert PNG not in str(stored)
    assert PDF not in str(stored)
    assert is_stored(stored)
    earlier = message([MESSAGE_PARTS[0][0]]).messages or []
    assert with_data(stored, [*earlier, *messages]) == given
    assert not is_stored(given)


def test_items_that_were_dropped_from_the_conversation_have_no_data() -> None:
    images = [{"type": "input_image", "image_url": f"data:image/png;base64,{'A' * size}"} for size in (4, 8, 16, 12)]
    content = [{"role": "user", "content": [image]} for image in images]
    body = read(ResponseCreate, {"model": "m", "input": content})
    messages = conversation(None, None, body.input)
    for dropped in ((), (0,), (1,), (0, 1, 2), (1, 2)):
        stored = body.facts().input
        with_data(stored, [item for position, item in enumerate(messages) if position not in dropped])
        urls = [item["content"][0].get("image_url") for item in stored]
        assert [url for n, url in enumerate(urls) if n not in dropped] == [
            image["image_url"] for n, image in enumerate(images) if n not in dropped
        ]
        assert [urls[n] for n in dropped] == [None] * len(dropped)


async def test_parameters_of_the_provider() -> None:
    def request(extra: dict[str, Any]) -> GenerateRequest:
        body = {"model": "sees", "messages": [{"role": "user", "content": "x"}], "extra_body": extra}
        return read(JobCreate, body).generate_request()

    await admit(request({"top_a": 0.5, "safety_settings": [{"a": None}]}), "sees")
    with pytest.raises(InvalidRequest) as refused:
        await admit(request({"top_a": 0.5}), "text")
    assert refused.value.message == (
        "extra_body.top_a: the model `text` does not support this parameter; models that can serve this request: sees"
    )
    with pytest.raises(InvalidRequest, match=r"extra_body\.novel: .*; no configured model can"):
        await admit(request({"novel": 1}), "sees")


@pytest.mark.parametrize("schema", [JobCreate, ChatCompletionRequest, MessagesRequest, ResponseCreate])
def test_parameters_of_the_provider_beside_the_others(schema: Any) -> None:
    """OpenAI's SDK merges its `extra_body` into the request."""
    reader = member_reader(extra_names={"sees": {"top_a", "top_k", "best_of"}})
    body = {"model": "sees", "top_a": 1, "novel": 2, "best_of": 3, "extra_body": {"top_a": 4}}
    reading = reader.read(Shape(schema), body)
    assert reading.body["extra_body"] == {"top_a": 4, "best_of": 3}
    assert reading.ignored == ("novel",)
    assert "top_a" not in reading.body
    with pytest.raises(InvalidRequest):
        member_reader(extra_names={}).read(Shape(ChatCompletionRequest), body)


@pytest.mark.parametrize(
    "options",
    [
        {"modalities": ["text", "video"]},
        {"extra_body": ["messages"]},
        {"extra_body": ["stream"]},
        {"extra_body": ["temperature"]},
        {"extra_body": [""]},
    ],
)
def test_options_that_are_refused_at_the_start(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model("m", **options)


def test_kinds_of_parts() -> None:
    assert isinstance(ImagePart(type="image", url=URL), ImagePart)
    with pytest.raises(ValidationError, match="exactly one of data, url and file_id"):
        FilePart(type="file", url=URL, file_id="f")


LONE = "\ud800"


@pytest.mark.parametrize(
    ("schema", "body", "param"),
    [
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": LONE}]}, "messages[0].content"),
        (JobCreate, {"messages": [{"role": "user", "content": [{"text": LONE}]}]}, "messages[0].content"),
        (
            MessagesRequest,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": 7}}]}]},
            "messages[0].content[0].source.url",
        ),
        (
            MessagesRequest,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "x"}}]}]},
            "messages[0].content[0].source",
        ),
        (
            ResponseCreate,
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": LONE}]}]},
            "input[0].content[0].text",
        ),
        (ResponseCreate, {"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]}, "input[0].output"),
    ],
)  # fmt: skip
def test_errors_name_the_field(schema: Any, body: dict[str, Any], param: str) -> None:
    """The alternatives of a content are no part of its path."""
    required = {"max_tokens": 9} if schema is MessagesRequest else {}
    with pytest.raises(ValidationError) as invalid:
        read(schema, {"model": "m", **required, **body})
    assert describe(invalid.value.errors(include_url=False, include_input=False))[1] == param
