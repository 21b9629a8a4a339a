"""The contract of all engines that relay to another server: one suite over the stand-ins of their vendors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from api.jobs.capability_check import CapabilityCheck
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Choice, ToolCall, Usage
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Sampling, StructuredOutputs, Tool
from tests.support.metrics import worker_metrics
from tests.support.transcripts import choices_of
from tests.support.vendors.catalog import ALL, VENDORS
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, KEY_ENV, Vendor
from workers.engines.base import NO_PRIOR, BusyReason, EngineError, Prior, PromptInfo, UpstreamBusy
from workers.engines.factory import make_engine
from workers.engines.resume import Resume
from workers.engines.upstream.engine import UpstreamEngine

ASK = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=50))
WEATHER = Tool(function=Function(name="weather", parameters={"type": "object"}))
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLS = (ToolCall("call_1", "weather", '{"city": "Paris"}'), ToolCall("call_2", "weather", '{"city": "Rome"}'))
WIDE = ("né", "e 😀", "ü 漢字")
CONNECT_S, READ_S = 0.05, 0.15


@pytest.fixture(params=ALL)
async def vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vendor]:
    monkeypatch.setenv(KEY_ENV, KEY)
    async with VENDORS[request.param]().serve() as vendor:
        yield vendor


@pytest.fixture
async def engine(vendor: Vendor) -> AsyncIterator[UpstreamEngine]:
    """An engine for the vendor that retries at once."""
    async with engine_for(vendor, max_retries=2, read_timeout_s=10) as engine:
        yield engine


@pytest.fixture
async def impatient(vendor: Vendor) -> AsyncIterator[UpstreamEngine]:
    """An engine that gives up on a silent upstream after a short time, and on a connection after a shorter one."""
    async with engine_for(vendor, max_retries=1, connect_timeout_s=CONNECT_S, read_timeout_s=READ_S) as engine:
        yield engine


@asynccontextmanager
async def engine_for(vendor: Vendor, **options: Any) -> AsyncIterator[UpstreamEngine]:
    engine = make_engine(vendor.spec(**options), worker_metrics("up"))
    assert isinstance(engine, UpstreamEngine)
    await engine.start()
    yield engine
    assert engine.stats().requests == 0
    await engine.stop()


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.upstream.backoff.BACKOFF_S", (0.0, 0.0))


async def run(
    engine: UpstreamEngine,
    request: GenerateRequest = ASK,
    deltas: list[Delta] | None = None,
    prior: Prior = NO_PRIOR,
) -> tuple[Choice, Usage | None]:
    """The answer and its usage. `deltas` collects the output even if the request fails."""
    deltas = [] if deltas is None else deltas
    usage = None
    async with aclosing(engine.generate("job-1", request, prior)) as items:
        async for item in items:
            match item:
                case Delta():
                    deltas.append(item)
                case Usage():
                    usage = item
                case PromptInfo():
                    usage = Usage(item.prompt_tokens, item.cached_tokens)
    return choices_of(deltas)[0], usage


async def failure(engine: UpstreamEngine, request: GenerateRequest = ASK) -> tuple[str, EngineError]:
    """The text before the error, and the error, of a request that fails."""
    deltas: list[Delta] = []
    with pytest.raises(EngineError) as caught:
        await run(engine, request, deltas)
    return "".join(delta.text for delta in deltas), caught.value


def refused_param(vendor: Vendor, request: GenerateRequest) -> str | None:
    """The parameter that admission names when it refuses a request."""
    with pytest.raises(InvalidRequest, match="`up` does not support") as caught:
        CapabilityCheck(Registry({"up": vendor.spec()})).check("up", request)
    return caught.value.param


def with_chat(**options: Any) -> GenerateRequest:
    return ASK.model_copy(update={"chat": ChatOptions(**options)})


def body_of(vendor: Vendor) -> Any:
    """The body of the request that asked for an answer."""
    return next(seen.body for seen in vendor.seen if seen.method == "POST")


async def test_an_answer_has_text_finish_reason_and_usage(vendor: Vendor, engine: UpstreamEngine) -> None:
    choice, usage = await run(engine)
    assert (choice.text, choice.finish_reason) == ("Hi there", "stop")
    if vendor.usage:
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (7, 2)
    assert vendor.generated == 1


async def test_an_answer_that_reached_its_limit_is_incomplete(vendor: Vendor, engine: UpstreamEngine) -> None:
    if not vendor.reports_limit:
        pytest.skip("this API does not tell it")
    vendor.scripts = [Script(finish="length", usage=Usage(7, 0, 50))]
    choice, _ = await run(engine)
    assert choice.finish_reason == "length"


async def test_an_answer_that_a_filter_ended_is_incomplete(vendor: Vendor, engine: UpstreamEngine) -> None:
    if not vendor.filters:
        pytest.skip("this API has no filter")
    vendor.scripts = [Script(finish="content_filter")]
    choice, _ = await run(engine)
    assert (choice.text, choice.finish_reason) == ("Hi there", "content_filter")


async def test_reasoning_is_kept_apart(vendor: Vendor, engine: UpstreamEngine) -> None:
    if not vendor.reasoning:
        pytest.skip("this API has no reasoning")
    vendor.scripts = [Script(reasoning=("Let me ", "think."))]
    choice, _ = await run(engine)
    assert (choice.reasoning, choice.text) == ("Let me think.", "Hi there")


async def test_tool_calls(vendor: Vendor, engine: UpstreamEngine) -> None:
    request = with_chat(tools=[WEATHER])
    if not vendor.tools:
        assert refused_param(vendor, request) == "tools"
        return
    vendor.scripts = [Script(text=(), calls=CALLS, finish="tool_calls")]
    choice, _ = await run(engine, request)
    assert (choice.tool_calls, choice.finish_reason) == (CALLS, "tool_calls")


async def test_stop_strings_reach_the_upstream(vendor: Vendor, engine: UpstreamEngine) -> None:
    request = ASK.model_copy(update={"sampling": Sampling(max_tokens=50, stop=["END", "STOP"])})
    if not vendor.stops:
        assert refused_param(vendor, request) == "stop"
        return
    await run(engine, request)
    assert vendor.stops_of(body_of(vendor)) == ["END", "STOP"]


async def test_schemas_reach_the_upstream(vendor: Vendor, engine: UpstreamEngine) -> None:
    request = ASK.model_copy(update={"structured_outputs": StructuredOutputs(json_schema=SCHEMA)})
    if not vendor.structure:
        assert refused_param(vendor, request) == "structured_outputs"
        return
    await run(engine, request)
    assert vendor.schema_of(body_of(vendor)) == SCHEMA


async def test_bytes_cut_inside_a_character(vendor: Vendor, engine: UpstreamEngine) -> None:
    vendor.scripts = [Script(text=WIDE, split=True)]
    choice, _ = await run(engine)
    assert choice.text == "".join(WIDE)


async def test_unknown_events_and_fields_are_skipped(vendor: Vendor, engine: UpstreamEngine) -> None:
    vendor.scripts = [Script(noise=True)]
    choice, _ = await run(engine)
    assert (choice.text, choice.finish_reason) == ("Hi there", "stop")


async def test_a_slow_first_byte(vendor: Vendor, impatient: UpstreamEngine) -> None:
    """The time to connect does not limit the time to the first byte."""
    before = asyncio.Event()
    vendor.scripts = [Script(before=before)]
    answer = asyncio.create_task(run(impatient))
    await vendor.arrived.wait()
    asyncio.get_running_loop().call_later(2 * CONNECT_S, before.set)
    choice, _ = await answer
    assert choice.text == "Hi there"
    assert vendor.generated == 1


async def test_a_first_byte_that_does_not_come(vendor: Vendor, impatient: UpstreamEngine) -> None:
    """An upstream that keeps its answers may be polled for it; the job is deferred otherwise."""
    vendor.default = Script(before=asyncio.Event())
    if vendor.polled:
        choice, _ = await run(impatient)
        assert choice.text == "Hi there"
        assert vendor.generated == 1
        return
    text, error = await failure(impatient)
    assert text == ""
    assert isinstance(error, UpstreamBusy)
    assert error.reason is BusyReason.TIMEOUT


async def test_a_cancel_reaches_the_upstream(vendor: Vendor, engine: UpstreamEngine) -> None:
    """By a closed connection; or by a request, if the upstream would go on."""
    vendor.scripts = [Script(hang_after=1)]
    state = None
    items = engine.generate("job-1", ASK)
    async for item in items:
        if isinstance(item, UpstreamState):
            state = item
        if isinstance(item, Delta) and item.text:
            break
    await items.aclose()
    if state is not None:
        await engine.cancel(state)
    await asyncio.wait_for(vendor.cancelled.wait(), 10)


async def test_an_error_before_the_first_token_is_retried(vendor: Vendor, engine: UpstreamEngine) -> None:
    vendor.scripts = [Script(status=500), Script(status=503)]
    choice, _ = await run(engine)
    assert choice.text == "Hi there"
    assert vendor.generated == 3


@pytest.mark.parametrize("status", [429, 503])
async def test_a_short_named_delay_is_waited_out(vendor: Vendor, engine: UpstreamEngine, status: int) -> None:
    vendor.scripts = [Script(status=status, retry_after="0")]
    choice, _ = await run(engine)
    assert choice.text == "Hi there"
    assert vendor.generated == 2


@pytest.mark.parametrize(("status", "reason"), [(429, BusyReason.RATE_LIMIT), (503, BusyReason.SERVER_ERROR)])
async def test_a_long_named_delay_defers_the_job(
    vendor: Vendor, engine: UpstreamEngine, status: int, reason: BusyReason
) -> None:
    vendor.scripts = [Script(status=status, retry_after="17", message="slow down")]
    text, error = await failure(engine)
    assert text == ""
    assert isinstance(error, UpstreamBusy)
    assert (error.reason, error.retry_after_s) == (reason, 17)
    assert "slow down" in error.message
    assert vendor.generated == 1


async def test_a_refused_request_is_the_clients_error(vendor: Vendor, engine: UpstreamEngine) -> None:
    vendor.scripts = [Script(status=400, message="too many dragons")]
    with pytest.raises(InvalidRequest, match="too many dragons"):
        await run(engine)
    assert vendor.generated == 1


async def test_a_refused_key_is_reported_without_the_key(
    vendor: Vendor, engine: UpstreamEngine, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.default = Script(status=401, message=f"Incorrect API key provided: {KEY} at http://10.1.2.3:8000/v1")
    with caplog.at_level(logging.DEBUG):
        text, error = await failure(engine)
    assert text == ""
    assert "key" in error.message
    for secret in (KEY, KEY[:12], KEY[-8:], "10.1.2.3"):
        assert secret not in error.message
        assert KEY not in caplog.text


async def test_an_error_after_the_first_token_fails_the_job(vendor: Vendor, engine: UpstreamEngine) -> None:
    if not vendor.reports_errors:
        pytest.skip("this API reports no errors in an answer")
    vendor.default = Script(fail_after=1, message="out of memory at http://10.1.2.3:8000/v1")
    text, error = await failure(engine)
    assert text in ("Hi ", "")
    assert "out of memory" in error.message
    assert "10.1.2.3" not in error.message
    assert vendor.generated == 1


async def test_what_follows_a_loss_is_what_the_capabilities_say(vendor: Vendor, engine: UpstreamEngine) -> None:
    """The capabilities, which are documented and shown to clients, are those of the engine."""
    vendor.scripts = [Script(hang_after=1)]
    state, deltas = None, []
    items = engine.generate("job-1", ASK)
    async for item in items:
        if isinstance(item, UpstreamState):
            state = item
        if isinstance(item, Delta):
            deltas.append(item)
            if item.text:
                break
    await items.aclose()
    found = vendor.spec().capabilities
    assert found.resume == (state is not None)
    mode = engine.resume_mode(ASK, Prior(deltas, upstream=state))
    assert (mode is Resume.EXACT) == (found.resume or found.continues)


async def test_a_cut_answer_is_continued_or_fails(vendor: Vendor, engine: UpstreamEngine) -> None:
    vendor.scripts = [Script(cut_after=1)]
    if vendor.resumes:
        choice, _ = await run(engine)
        assert (choice.text, choice.finish_reason) == ("Hi there", "stop")
    else:
        text, _ = await failure(engine)
        assert text == "Hi "
    assert vendor.generated == 1
    assert resumes(engine, "connection") == vendor.resumes


async def test_the_next_attempt_reads_the_answer_of_a_request_that_runs_on(
    vendor: Vendor, engine: UpstreamEngine
) -> None:
    states = [item async for item in engine.generate("job-1", ASK) if isinstance(item, UpstreamState)]
    assert bool(states) == vendor.resumes
    if states:
        choice, _ = await run(engine, prior=Prior((), True, states[0]))
        assert (choice.text, choice.finish_reason) == ("Hi there", "stop")
    assert vendor.generated == 1
    assert resumes(engine, "attempt") == vendor.resumes


def resumes(engine: UpstreamEngine, reason: str) -> float:
    count: float = engine._metrics.upstream_resumes.labels("up", reason)._value.get()
    return count


async def test_an_answer_without_its_end_is_not_complete(vendor: Vendor, engine: UpstreamEngine) -> None:
    if vendor.resumes:
        pytest.skip("the answer is continued")
    vendor.scripts = [Script(cut_after=2)]
    text, _ = await failure(engine)
    assert text == "Hi there"


async def test_an_upstream_that_hangs_times_out(vendor: Vendor, impatient: UpstreamEngine) -> None:
    vendor.default = Script(hang_after=1)
    text, error = await failure(impatient)
    assert text == "Hi "
    assert "time" in error.message


async def test_a_page_in_place_of_an_answer(vendor: Vendor, engine: UpstreamEngine) -> None:
    vendor.default = Script(html=True)
    text, error = await failure(engine)
    assert text == ""
    assert "proxy-17" not in error.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_is_not_followed(vendor: Vendor, engine: UpstreamEngine, status: int) -> None:
    """Another server with the same API, where the answer would be found, sees no request."""
    async with type(vendor)().serve() as other:
        vendor.elsewhere = other.url
        vendor.default = Script(status=status)
        text, error = await failure(engine)
        assert other.requests == 0
    assert text == ""
    assert other.url not in error.message
    assert vendor.generated == 1


async def test_each_key_goes_in_a_header(vendor: Vendor, engine: UpstreamEngine) -> None:
    await run(engine)
    for seen in vendor.seen:
        assert vendor.has_key(seen)
        assert KEY not in seen.path
        assert KEY not in str(seen.query)
