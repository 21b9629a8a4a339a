"""Each managed engine and preset through the queue, in every dialect, with real processes and the stand-ins."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import openai
import pytest
import yaml

from shared.config.models.loader import load_registry
from shared.config.models.upstream import UpstreamModel
from shared.domain.job import ToolCall, Usage
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.support.database import drop_database
from tests.support.engine_tables import EXAMPLES
from tests.support.examples import LONG
from tests.support.metrics import samples
from tests.support.ports import free_port
from tests.support.sse import Sse, follow, read_events, text_of
from tests.support.stack import KEY, Stack
from tests.support.vendors.anthropic import AnthropicVendor
from tests.support.vendors.catalog import ALL, VENDORS
from tests.support.vendors.openai import OpenAIVendor
from tests.support.vendors.presets import ModalVendor
from tests.support.vendors.script import Script
from tests.support.vendors.stand_in import entry_at
from tests.support.vendors.vendor import KEY as VENDOR_KEY
from tests.support.vendors.vendor import Vendor
from tests.support.waiting import eventually

CLASSIC_PORT = free_port()
PORTS = {name: free_port() for name in VENDORS}
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
ANSWER = Script(text=("né", "e 😀 ", "ü 漢字"), usage=Usage(7, 0, 3))
TEXT = "".join(ANSWER.text)
IMAGE = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256))).decode()
PDF = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.4\n" + bytes(range(256))).decode()
CALL = Script(text=(), calls=(ToolCall("call_1", "weather", '{"city": "Paris"}'),), finish="tool_calls")


def entry(name: str) -> dict[str, object]:
    """The entry of a vendor's model in models.yaml; the model has the vendor's name."""
    vendor = VENDORS[name]()
    vendor.url = f"http://127.0.0.1:{PORTS[name]}"
    return vendor.spec().model_dump(mode="json", exclude_unset=True, by_alias=True) | {"name": name}


def classic_set() -> list[dict[str, object]]:
    """The models of the example file: Claude at the stand-in's address, and a simulated model in place of the GPU's."""
    entries = []
    for entry in yaml.safe_load(EXAMPLES.read_text())["models"]:
        model = load_registry(EXAMPLES)[entry["name"]]
        if isinstance(model, UpstreamModel):
            entries.append(entry_at(entry, model, f"http://127.0.0.1:{CLASSIC_PORT}"))
        else:
            entries.append({"name": entry["name"], "engine": "simulated"})
    return entries


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API and a worker for each vendor and each model of the classic set. Each test starts its own stand-in."""
    models = [entry(name) for name in VENDORS] + classic_set()
    # Long leases, because the heartbeats of so many idle workers take a part of a core.
    leases: dict[str, Any] = {} if LONG else {"HEADRACE_LEASE_S": 60, "HEADRACE_HEARTBEAT_S": 20}
    stack = make_stack(
        servers, tmp_path_factory, "engines", models, VENDOR_API_KEY=VENDOR_KEY, ANTHROPIC_API_KEY=VENDOR_KEY, **leases
    )
    try:
        stack.start_api()
        stack.start_workers(str(model["name"]) for model in models)
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_engines")


@pytest.fixture(params=ALL)
async def vendor(request: pytest.FixtureRequest, stack: Stack) -> AsyncIterator[Vendor]:
    async with VENDORS[request.param]().serve(PORTS[request.param]) as vendor:
        vendor.default = ANSWER
        yield vendor


@pytest.fixture
def model(vendor: Vendor) -> str:
    return next(name for name, kind in VENDORS.items() if kind is type(vendor))


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


@pytest.fixture
async def sdk(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def claude(stack: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=stack.url, auth_token=KEY, max_retries=0) as sdk:
        yield sdk


async def test_jobs(client: httpx.AsyncClient, vendor: Vendor, model: str) -> None:
    response = await client.post("/v1/jobs", json={"model": model, "messages": MESSAGES, "max_tokens": 50})
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]
    assert text_of(await follow(client, job_id)) == TEXT
    done = await wait_for_end(client, job_id)
    assert (done["status"], done["output_text"]) == ("completed", TEXT)
    if vendor.usage:
        assert (done["usage"]["prompt_tokens"], done["usage"]["completion_tokens"]) == (7, 3)
    assert vendor.generated == 1


async def test_chat(sdk: openai.AsyncOpenAI, vendor: Vendor, model: str) -> None:
    complete = await sdk.chat.completions.create(model=model, messages=MESSAGES, max_tokens=50)
    assert complete.choices[0].message.content == TEXT
    stream = await sdk.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=50, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage is not None


async def test_messages(claude: anthropic.AsyncAnthropic, vendor: Vendor, model: str) -> None:
    complete = await claude.messages.create(model=model, messages=MESSAGES, max_tokens=50)
    assert [block.text for block in complete.content if block.type == "text"] == [TEXT]
    async with claude.messages.stream(model=model, messages=MESSAGES, max_tokens=50) as stream:
        assert "".join([text async for text in stream.text_stream]) == TEXT


async def test_responses(sdk: openai.AsyncOpenAI, vendor: Vendor, model: str) -> None:
    complete = await sdk.responses.create(model=model, input="Hello", max_output_tokens=50)
    assert complete.output_text == TEXT
    stream = await sdk.responses.create(model=model, input="Hello", max_output_tokens=50, stream=True)
    events = [event async for event in stream]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT


async def test_completions(sdk: openai.AsyncOpenAI, vendor: Vendor, model: str) -> None:
    """A model without raw prompts refuses them."""
    if not vendor.raw_prompts:
        with pytest.raises(openai.BadRequestError, match="prompts without a conversation") as caught:
            await sdk.completions.create(model=model, prompt="Hello", max_tokens=50)
        assert caught.value.param == "prompt"
        assert vendor.generated == 0
        return
    complete = await sdk.completions.create(model=model, prompt="Hello", max_tokens=50)
    assert complete.choices[0].text == TEXT
    stream = await sdk.completions.create(model=model, prompt="Hello", max_tokens=50, stream=True)
    assert "".join([part.choices[0].text async for part in stream if part.choices]) == TEXT
    assert vendor.generated == 2
    assert "Hello" in str(vendor.seen[0].body)


async def test_images_and_files(
    sdk: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, client: httpx.AsyncClient, vendor: Vendor, model: str
) -> None:
    """They reach the vendor unchanged in each dialect. A model without them refuses them, and names those with them."""
    images, files = "image" in vendor.modalities, "file" in vendor.modalities
    chat: Any = [
        {"type": "image_url", "image_url": {"url": IMAGE}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}},
    ]
    parts: Any = [
        {"type": "input_image", "image_url": IMAGE, "detail": "auto"},
        {"type": "input_file", "filename": "a.pdf", "file_data": PDF},
    ]
    blocks: Any = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE.partition(",")[2]}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF.partition(",")[2]},
        },
    ]
    count = images + files
    if not count:
        with pytest.raises(openai.BadRequestError, match="responses") as caught:
            await sdk.chat.completions.create(model=model, messages=[{"role": "user", "content": chat}], max_tokens=50)
        assert caught.value.param == "messages[0].content[0]"
        assert vendor.generated == 0
        return
    expected = [IMAGE, PDF][:count]
    job: Any = {"model": model, "messages": [{"role": "user", "content": chat[:count]}], "max_tokens": 50}
    response = await client.post("/v1/jobs", json=job)
    assert response.status_code == 202, response.text
    assert (await wait_for_end(client, response.json()["id"]))["output_text"] == TEXT
    await sdk.chat.completions.create(model=model, messages=job["messages"], max_tokens=50)
    await sdk.responses.create(model=model, input=[{"role": "user", "content": parts[:count]}], max_output_tokens=50)
    await claude.messages.create(model=model, messages=[{"role": "user", "content": blocks[:count]}], max_tokens=50)
    bodies = [seen.body for seen in vendor.seen if seen.method == "POST"]
    assert [vendor.media_of(body) for body in bodies] == [expected] * 4


async def test_tool_calls(
    sdk: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, vendor: Vendor, model: str
) -> None:
    """A model without tools refuses them, and names the parameter and the models that have them."""
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    vendor.default = CALL
    if not vendor.tools:
        with pytest.raises(openai.BadRequestError, match="tools") as caught:
            await sdk.chat.completions.create(model=model, messages=MESSAGES, max_tokens=50, tools=[tool])
        assert caught.value.param == "tools"
        assert vendor.generated == 0
        return
    chat = await sdk.chat.completions.create(model=model, messages=MESSAGES, max_tokens=50, tools=[tool])
    calls: Any = chat.choices[0].message.tool_calls
    (call,) = calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    assert chat.choices[0].finish_reason == "tool_calls"
    theirs: Any = {"name": "weather", "input_schema": PARAMETERS}
    message = await claude.messages.create(model=model, messages=MESSAGES, max_tokens=50, tools=[theirs])
    (block,) = [block for block in message.content if block.type == "tool_use"]
    assert (block.name, block.input, message.stop_reason) == ("weather", {"city": "Paris"}, "tool_use")


async def test_batches(client: httpx.AsyncClient) -> None:
    """One for each model, at the same time."""
    async with AsyncExitStack() as stand_ins:
        for name, kind in VENDORS.items():
            vendor = await stand_ins.enter_async_context(kind().serve(PORTS[name]))
            vendor.default = ANSWER
        answers = await asyncio.gather(*(batch_answers(client, name) for name in VENDORS))
    assert dict(zip(VENDORS, answers, strict=True)) == dict.fromkeys(VENDORS, [TEXT] * 3)


async def batch_answers(client: httpx.AsyncClient, model: str) -> list[str]:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 50}
    lines = [
        json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for number in range(3)
    ]
    upload = await client.post("/v1/files", files={"file": ("in.jsonl", "\n".join(lines))}, data={"purpose": "batch"})
    created = await client.post(
        "/v1/batches",
        json={"input_file_id": upload.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )
    assert created.status_code == 200, created.text

    async def ended() -> dict[str, Any] | None:
        batch: dict[str, Any] = (await client.get(f"/v1/batches/{created.json()['id']}")).json()
        return batch if batch["status"] in ("completed", "failed") else None

    batch = await eventually(ended, f"the batch of {model} ends", within_s=60)
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    content = (await client.get(f"/v1/files/{batch['output_file_id']}/content")).text
    bodies = [json.loads(line)["response"]["body"] for line in content.splitlines()]
    return [answer["choices"][0]["message"]["content"] for answer in bodies]


async def test_a_cancel_reaches_the_vendor(client: httpx.AsyncClient, vendor: Vendor, model: str) -> None:
    vendor.default = Script(hang_after=1)
    response = await client.post("/v1/jobs", json={"model": model, "messages": MESSAGES, "max_tokens": 50})
    job_id = response.json()["id"]
    await vendor.arrived.wait()
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as stream:
        async for line in stream.aiter_lines():
            if '"Hi' in line:
                break
    await client.post(f"/v1/jobs/{job_id}/cancel")
    async with asyncio.timeout(15):
        await vendor.cancelled.wait()
    done = await wait_for_end(client, job_id)
    assert (done["status"], done["output_text"]) == ("cancelled", "Hi ")
    assert vendor.generated == 1


async def test_the_classic_set(sdk: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    """Each model of the example file answers, and Claude's are asked for by their vendor's names."""
    names = [str(model["name"]) for model in classic_set()]
    assert names == ["llama-3-8b", "claude-haiku", "claude-sonnet", "claude-opus"]
    async with AnthropicVendor().serve(CLASSIC_PORT) as vendor:
        chats = await asyncio.gather(
            *(sdk.chat.completions.create(model=name, messages=MESSAGES, max_tokens=50) for name in names)
        )
        messages = await asyncio.gather(
            *(claude.messages.create(model=name, messages=MESSAGES, max_tokens=50) for name in names)
        )
    texts = [chat.choices[0].message.content for chat in chats]
    assert texts == [getattr(message.content[0], "text", None) for message in messages]
    assert all(texts)
    assert texts[1:] == ["Hi there"] * 3
    models = ["claude-haiku-5-5", "claude-opus-5-5", "claude-sonnet-5-5"]
    assert sorted(seen.body["model"] for seen in vendor.seen) == sorted(models * 2)
    assert all(vendor.has_key(seen) for seen in vendor.seen)


@asynccontextmanager
async def preset(name: str) -> AsyncIterator[Vendor]:
    async with VENDORS[f"preset-{name}"]().serve(PORTS[f"preset-{name}"]) as vendor:
        yield vendor


@pytest.mark.parametrize("name", ["openai", "azure"])
async def test_names_and_headers_of_openai_and_azure(sdk: openai.AsyncOpenAI, name: str) -> None:
    async with preset(name) as vendor:
        answer = await sdk.chat.completions.create(
            model=f"preset-{name}", messages=MESSAGES, max_tokens=50, stop=["END"], reasoning_effort="low"
        )
    assert answer.choices[0].message.content == "Hi there"
    (seen,) = vendor.seen
    assert seen.path == ("/openai/v1/chat/completions" if name == "azure" else "/v1/chat/completions")
    assert (seen.body["max_completion_tokens"], seen.body["reasoning_effort"]) == (50, "low")
    assert ("api-key" in seen.headers, "authorization" in seen.headers) == (name == "azure", name != "azure")


async def test_geminis_thoughts_and_signatures(sdk: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    parameters: Any = {"model": "preset-gemini", "max_tokens": 50, "tools": [tool]}
    async with preset("gemini") as vendor:
        vendor.scripts = [replace(CALL, usage=Usage(7, 4, 60, 50))]
        first = await sdk.chat.completions.create(messages=MESSAGES, **parameters)
        assert first.usage is not None
        assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (7, 60)
        assert first.usage.prompt_tokens_details is not None
        assert first.usage.completion_tokens_details is not None
        assert first.usage.prompt_tokens_details.cached_tokens == 4
        assert first.usage.completion_tokens_details.reasoning_tokens == 50
        assert first.choices[0].finish_reason == "tool_calls"
        turn: Any = first.choices[0].message.model_dump(exclude_none=True)
        result: Any = {"role": "tool", "tool_call_id": turn["tool_calls"][0]["id"], "content": "sunny"}
        await sdk.chat.completions.create(messages=[*MESSAGES, turn, result], **parameters)
    assert vendor.seen[1].body["messages"][1]["tool_calls"][0]["extra_content"] == {
        "google": {"thought_signature": "sig-1"}
    }


def cached_tokens_in(usage: Any) -> tuple[int, int]:
    """The tokens of the prompt, and those of them that were cached, in the usage of any dialect."""
    for details in ("prompt_tokens_details", "input_tokens_details"):
        if details in usage:
            return usage[details.replace("_details", "")], usage[details]["cached_tokens"]
    if "cache_read_input_tokens" in usage:  # Anthropic counts them apart
        return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]
    return usage["prompt_tokens"], usage["cached_tokens"]


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
async def test_cached_tokens_are_in_the_usage_of_every_dialect(client: httpx.AsyncClient, stream: bool) -> None:
    common: dict[str, Any] = {"model": "openai", "stream": stream}
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {**common, **options, "messages": MESSAGES},
        "/v1/completions": {**common, **options, "prompt": "Hello", "max_tokens": 50},
        "/v1/responses": {**common, "input": "Hello"},
        "/v1/messages": {**common, "messages": MESSAGES, "max_tokens": 50},
    }
    async with OpenAIVendor().serve(PORTS["openai"]) as vendor:
        vendor.default = replace(ANSWER, usage=Usage(7, 4, 3))
        found = {}
        for path, body in bodies.items():
            if not stream:
                found[path] = cached_tokens_in((await client.post(path, json=body)).json()["usage"])
                continue
            async with client.stream("POST", path, json=body) as response:
                lines = [line async for line in response.aiter_lines()]
            data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
            usages = [usage for item in data if (usage := item.get("usage") or item.get("response", {}).get("usage"))]
            found[path] = cached_tokens_in(usages[-1])
        job = (await client.post("/v1/jobs", json={"model": "openai", "messages": MESSAGES})).json()
        events = await follow(client, job["id"])
        usage = events[-1].data["usage"] if stream else (await wait_for_end(client, job["id"]))["usage"]
    assert {**found, "/v1/jobs": cached_tokens_in(usage)} == dict.fromkeys([*bodies, "/v1/jobs"], (7, 4))


async def test_parts_of_another_provider_are_dropped_and_counted(sdk: openai.AsyncOpenAI, stack: Stack) -> None:
    """A conversation continues with another provider's model, to which Gemini's thought signatures are not sent."""
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    parameters: Any = {"max_tokens": 50, "tools": [tool]}
    async with preset("gemini") as gemini, preset("openai") as other:
        gemini.scripts = [CALL]
        first = await sdk.chat.completions.create(model="preset-gemini", messages=MESSAGES, **parameters)
        turn: Any = first.choices[0].message.model_dump(exclude_none=True)
        assert turn["tool_calls"][0]["extra_content"]
        result: Any = {"role": "tool", "tool_call_id": turn["tool_calls"][0]["id"], "content": "sunny"}
        before = await samples(stack, "worker")
        await sdk.chat.completions.create(model="preset-openai", messages=[*MESSAGES, turn, result], **parameters)
        assert "sig-1" not in str(other.seen[0].body)
    counted = ("headrace_opaque_parts_dropped_total", "preset-openai")
    assert (await samples(stack, "worker"))[counted] - before.get(counted, 0) == 1


async def test_openrouters_reasoning_comes_back(sdk: openai.AsyncOpenAI) -> None:
    async with preset("openrouter") as vendor:
        vendor.default = Script(reasoning=("Let me ", "think."))
        first = await sdk.chat.completions.create(model="preset-openrouter", messages=MESSAGES, max_tokens=50)
        turn: Any = first.choices[0].message.model_dump(exclude_none=True)
        await sdk.chat.completions.create(
            model="preset-openrouter", messages=[*MESSAGES, turn, *MESSAGES], max_tokens=50
        )
    assert vendor.seen[0].body["provider"] == {"require_parameters": True}
    (details,) = vendor.seen[1].body["messages"][1]["reasoning_details"]
    assert (details["type"], details["text"]) == ("reasoning.text", "Let me think.")


async def test_an_error_of_tgi_in_a_stream(client: httpx.AsyncClient) -> None:
    async with preset("tgi") as vendor:
        vendor.default = Script(fail_after=1, message="out of memory")
        response = await client.post("/v1/jobs", json={"model": "preset-tgi", "messages": MESSAGES, "max_tokens": 50})
        done = await wait_for_end(client, response.json()["id"])
    assert (done["status"], done["output_text"]) == ("failed", "Hi ")
    assert done["error"]["code"] == "upstream_error"
    assert "out of memory" in done["error"]["message"]
    assert vendor.generated == 1


async def test_tokens_of_tritons_frontend_are_counted_here(sdk: openai.AsyncOpenAI) -> None:
    async with preset("triton"):
        answer = await sdk.chat.completions.create(model="preset-triton", messages=MESSAGES, max_tokens=50)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


async def test_a_cold_start_at_modal(sdk: openai.AsyncOpenAI) -> None:
    """The redirect to the result is followed, and the key is in the headers of both requests."""
    async with preset("modal") as vendor:
        assert isinstance(vendor, ModalVendor)
        vendor.cold = True
        answer = await sdk.chat.completions.create(model="preset-modal", messages=MESSAGES, max_tokens=50)
    assert answer.choices[0].message.content == "Hi there"
    assert [seen.method for seen in vendor.seen] == ["POST", "GET"]
    assert all(vendor.has_key(seen) for seen in vendor.seen)


async def test_parameters_of_sglang(client: httpx.AsyncClient) -> None:
    async with preset("sglang") as vendor:
        vendor.default = Script(reasoning=("Hm.",))
        body = {
            "model": "preset-sglang",
            "messages": MESSAGES,
            "max_tokens": 50,
            "stop": ["END"],
            "include_stop_str_in_output": True,
            "structured_outputs": {"regex": "a+"},
        }
        response = await client.post("/v1/jobs", json=body)
        done = await wait_for_end(client, response.json()["id"])
    assert (done["status"], done["output_text"]) == ("completed", "Hi there")
    assert done["output"][0]["reasoning"] == "Hm."
    sent = vendor.seen[0].body
    assert (sent["regex"], sent["no_stop_trim"]) == ("a+", True)


@pytest.mark.parametrize(("name", "path"), [("vllm", "/v1"), ("runpod", "/v2/endpoint1/openai/v1")])
async def test_parameters_of_vllm(client: httpx.AsyncClient, name: str, path: str) -> None:
    async with preset(name) as vendor:
        structure = {"choice": ["Hi there", "no"]}
        body = {"model": f"preset-{name}", "prompt": [1, 2], "max_tokens": 50, "structured_outputs": structure}
        response = await client.post("/v1/jobs", json=body | {"top_k": 3})
        done = await wait_for_end(client, response.json()["id"])
    assert (done["status"], done["output_text"]) == ("completed", "Hi there")
    (seen,) = vendor.seen
    assert (seen.path, seen.body["prompt"]) == (f"{path}/completions", [1, 2])
    assert (seen.body["structured_outputs"], seen.body["top_k"]) == (structure, 3)


async def test_an_answer_that_a_filter_ended(
    client: httpx.AsyncClient, sdk: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, stack: Stack
) -> None:
    """It is incomplete in every dialect, streamed and as a whole."""
    async with OpenAIVendor().serve(PORTS["openai"]) as vendor:
        vendor.default = Script(finish="content_filter")
        job = await client.post("/v1/jobs", json={"model": "openai", "messages": MESSAGES, "max_tokens": 50})
        done = await wait_for_end(client, job.json()["id"])
        assert (done["status"], done["output"][0]["finish_reason"]) == ("incomplete", "content_filter")

        chat = await sdk.chat.completions.create(model="openai", messages=MESSAGES, max_tokens=50)
        assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("Hi there", "content_filter")
        chunks = await sdk.chat.completions.create(model="openai", messages=MESSAGES, max_tokens=50, stream=True)
        assert [chunk.choices[0].finish_reason async for chunk in chunks][-1] == "content_filter"

        response = await sdk.responses.create(model="openai", input="Hello", max_output_tokens=50)
        assert response.incomplete_details is not None
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
        events = await sdk.responses.create(model="openai", input="Hello", max_output_tokens=50, stream=True)
        assert [event.type async for event in events][-1] == "response.incomplete"

        message = await claude.messages.create(model="openai", messages=MESSAGES, max_tokens=50)
        assert message.stop_reason == "refusal"
        async with claude.messages.stream(model="openai", messages=MESSAGES, max_tokens=50) as stream:
            assert (await stream.get_final_message()).stop_reason == "refusal"


@pytest.fixture
async def provider(stack: Stack) -> AsyncIterator[tuple[AnthropicVendor, anthropic.AsyncAnthropic]]:
    """Anthropic's stand-in, and Anthropic's client."""
    async with (
        AnthropicVendor().serve(PORTS["anthropic"]) as vendor,
        anthropic.AsyncAnthropic(base_url=stack.url, api_key=KEY, max_retries=0) as sdk,
    ):
        yield vendor, sdk


async def test_cache_control_and_usage(provider: tuple[AnthropicVendor, anthropic.AsyncAnthropic]) -> None:
    vendor, sdk = provider
    vendor.scripts = [Script(usage=Usage(100, 60, 2, 0, 30))]
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    message = await sdk.messages.create(model="anthropic", max_tokens=50, system=system, messages=MESSAGES)
    assert vendor.seen[-1].body["system"] == system
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 60, 30)


async def test_tokens_are_counted_by_the_provider(
    provider: tuple[AnthropicVendor, anthropic.AsyncAnthropic],
) -> None:
    vendor, sdk = provider
    counted = await sdk.messages.count_tokens(model="anthropic", messages=MESSAGES)
    assert counted.input_tokens == 2095
    assert vendor.generated == 0


async def test_thinking_with_tools_over_two_turns(
    provider: tuple[AnthropicVendor, anthropic.AsyncAnthropic],
) -> None:
    """Anthropic's client sends back what it got; the provider gets its own blocks, with its signature."""
    vendor, sdk = provider
    call = ToolCall("toolu_1", "weather", '{"city":"Paris"}')
    vendor.scripts = [Script(reasoning=("Let me ", "ask."), text=("I ask.",), calls=(call,), finish="tool_calls")]
    parameters: Any = {
        "model": "anthropic",
        "max_tokens": 5000,
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "tools": [{"name": "weather", "input_schema": PARAMETERS}],
    }
    async with sdk.messages.stream(messages=MESSAGES, **parameters) as stream:
        first = await stream.get_final_message()
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny", "is_error": True}
    turns: Any = [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = await sdk.messages.create(messages=[*MESSAGES, *turns], **parameters)
    assert second.stop_reason == "end_turn"
    assert vendor.seen[-1].body["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Let me ask.", "signature": "sig0"},
        {"type": "text", "text": "I ask."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
    ]
    (result_sent,) = vendor.seen[-1].body["messages"][2]["content"]
    assert result_sent["is_error"] is True


async def test_what_the_model_cannot_serve_is_refused_at_submit(
    client: httpx.AsyncClient, provider: tuple[AnthropicVendor, anthropic.AsyncAnthropic]
) -> None:
    """With the parameter as the dialect calls it, and the models that can. The provider gets no request."""
    vendor, _ = provider
    started = [*MESSAGES, {"role": "assistant", "content": "It is "}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    tools = [{"name": "weather", "input_schema": PARAMETERS}]
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("jobs", {"messages": MESSAGES, "thinking_token_budget": 5}, "thinking_token_budget"),
        ("chat/completions", {"messages": MESSAGES, "max_completion_tokens": 64_001}, "max_completion_tokens"),
        ("responses", {"input": started, "max_output_tokens": 50}, "input"),
        ("messages", {"messages": started, "max_tokens": 50}, "messages"),
        ("messages", {"messages": MESSAGES, "max_tokens": 2000, "thinking": thinking, "temperature": 0}, "temperature"),
        ("messages/count_tokens", {"messages": started}, "messages"),
    ]
    for path, body, param in cases:
        response = await client.post(f"/v1/{path}", json={"model": "anthropic", **body})
        error = response.json()["error"]
        assert response.status_code == 400, response.text
        assert error["message"].startswith(f"{param}: the model `anthropic` does not support ")
        assert error.get("param", param) == param
    able = {"messages": MESSAGES, "max_tokens": 2000, "tools": tools, "tool_choice": {"type": "any"}}
    response = await client.post("/v1/messages", json={"model": "anthropic", **able, "thinking": thinking})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("tool_choice: the model `anthropic` does not support ")
    assert vendor.seen == []


@pytest.mark.parametrize(
    ("end", "names"),
    [("drained", ["runpod"]), pytest.param("killed", ["replicate", "runpod"], marks=pytest.mark.long)],
)
async def test_an_answer_outlives_its_worker(
    stack: Stack, client: httpx.AsyncClient, end: str, names: list[str]
) -> None:
    """The next worker resumes the request that the vendor runs on: nothing is generated, shown or lost twice."""
    async with AsyncExitStack() as exits:
        vendors = {name: await exits.enter_async_context(VENDORS[name]().serve(PORTS[name])) for name in names}
        jobs, readers, events = {}, [], {}
        for name, vendor in vendors.items():
            vendor.default = replace(ANSWER, hang_after=1)
            body = {"model": name, "messages": MESSAGES, "max_tokens": 50}
            jobs[name] = (await client.post("/v1/jobs", json=body)).json()["id"]
            events[name] = asyncio.Queue[Sse]()
            readers.append(asyncio.create_task(read_into(events[name], client, jobs[name])))
        received = {name: await until_text(queue) for name, queue in events.items()}
        processes = [stack.processes[worker] for name in names for worker in stack.workers(name)]
        for process in processes:
            if end == "killed":
                process.kill()
            else:
                process.terminate()
        for name in names:
            for worker in stack.workers(name):
                stack.processes.pop(worker).wait(20)
        stack.start_workers(names)
        for vendor in vendors.values():
            await vendor.go_on()
        await asyncio.gather(*readers)
        for name, queue in events.items():
            rest = [queue.get_nowait() for _ in range(queue.qsize())]
            assert "job.restarted" not in {event.event for event in rest}
            assert text_of([*received[name], *rest]) == TEXT
            done = await wait_for_end(client, jobs[name])
            assert (done["status"], done["output_text"]) == ("completed", TEXT)
            assert len(done["attempts"]) == 2
            assert vendors[name].generated == 1


async def read_into(queue: asyncio.Queue[Sse], client: httpx.AsyncClient, job_id: str) -> None:
    """Read the stream of a job to its end."""
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as response:
        async for event in read_events(response):
            queue.put_nowait(event)


async def until_text(queue: asyncio.Queue[Sse]) -> list[Sse]:
    """The events of a stream up to the first text."""
    events = [await queue.get()]
    while not text_of(events):
        events.append(await queue.get())
    return events
