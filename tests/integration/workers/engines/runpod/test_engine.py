"""Jobs of RunPod's endpoints: outputs of all shapes, lost responses, cold starts, cancels, and strange states."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.domain.errors import InvalidRequest
from shared.domain.job import ToolCall, Usage
from shared.domain.request import ChatOptions, Function, GenerateRequest, Sampling, Tool
from tests.integration.workers.engines.answer import (
    ASK,
    TEXT,
    WHOLE,
    Answer,
    exported,
    failure,
    no_backoff,
    run,
    started,
)
from tests.support.metrics import worker_metrics
from tests.support.transcripts import choices_of
from tests.support.vendors.runpod import RAN_MS, WAITED_MS, RunpodVendor
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY
from workers.engines.base import CannotContinue, EngineError, UpstreamBusy, UpstreamError
from workers.engines.resume import Resume

SHAPES = ("events", "chunks", "tokens", "text", "object")
shapes = pytest.mark.parametrize("shape", SHAPES)


__all__ = ["no_backoff"]

pytestmark = pytest.mark.usefixtures("no_backoff")


@pytest.fixture
async def vendor() -> AsyncIterator[RunpodVendor]:
    async with RunpodVendor().serve() as vendor:
        vendor.default = Script(text=TEXT)
        yield vendor


def paths(vendor: RunpodVendor) -> list[str]:
    return [seen.path.split("/")[3] for seen in vendor.seen]


# Requests


async def test_the_job_as_the_worker_takes_it(vendor: RunpodVendor) -> None:
    request = ASK.model_copy(update={"sampling": Sampling(max_tokens=9, temperature=0, stop=["END"])})
    await run(vendor, request, execution_timeout_s=900, ttl_s=3600, low_priority=True)
    await run(vendor, request, input="vllm")
    await run(vendor, GenerateRequest(prompt="Once"))
    await run(vendor, GenerateRequest(prompt="Once", extra_body={"top_a": 1}), input="vllm", extra_body=["top_a"])
    await run(vendor, GenerateRequest(prompt="Once", extra_body={"top_a": 1}), extra_body=["top_a"])
    messages = [{"role": "user", "content": "Hello"}]
    stream = {"stream": True, "stream_options": {"include_usage": True}, "model": "theirs"}
    sampling = {"max_tokens": 9, "temperature": 0, "stop": ["END"]}
    policy = {"executionTimeout": 900_000, "ttl": 3_600_000, "lowPriority": True}
    assert [job.body for job in vendor.jobs.values()] == [
        {
            "input": {
                "openai_route": "/v1/chat/completions",
                "openai_input": {"messages": messages, **sampling, **stream},
            },
            "policy": policy,
        },
        {"input": {"messages": messages, "sampling_params": sampling, "stream": True}},
        {"input": {"openai_route": "/v1/completions", "openai_input": {"prompt": "Once", **stream}}},
        {"input": {"prompt": "Once", "sampling_params": {"top_a": 1, "max_tokens": None}, "stream": True}},
        {"input": {"openai_route": "/v1/completions", "openai_input": {"top_a": 1, "prompt": "Once", **stream}}},
    ]
    assert vendor.seen[0].headers["authorization"] == f"Bearer {KEY}"


# Outputs


@shapes
async def test_outputs_of_all_shapes(vendor: RunpodVendor, shape: str) -> None:
    vendor.shape = shape
    vendor.default = Script(text=TEXT, usage=Usage(7, 0, len(TEXT)))
    async with started(vendor.spec()) as engine:
        for generated, vendor.batch in enumerate((1, 3, 100), 1):
            answer = await Answer().take(engine)
            assert (answer.text, answer.reasons) == (WHOLE, ["stop"])
            assert answer.usage == (None if shape == "text" else Usage(7, 0, len(TEXT)))
            assert sum(delta.tokens for delta in answer.deltas) == len(TEXT)
            assert answer.state is not None
            assert (answer.state.id, vendor.generated) == (vendor.job.id, generated)


async def test_the_limit_of_tokens_is_the_reason_to_stop(vendor: RunpodVendor) -> None:
    vendor.default = Script(text=TEXT, finish="length", usage=Usage(7, 0, len(TEXT)))
    request = ASK.model_copy(update={"sampling": Sampling(max_tokens=len(TEXT))})
    async with started(vendor.spec()) as engine:
        for vendor.shape in SHAPES:
            assert (await Answer().take(engine, request)).reasons == ["length"]


async def test_events_cut_anywhere(vendor: RunpodVendor) -> None:
    vendor.batch = 10
    calls = (ToolCall("call_1", "weather", '{"city": "Paris"}'), ToolCall("call_2", "weather", '{"city": "Rome"}'))
    vendor.scripts = [Script(text=(), reasoning=("Hm", "m."), calls=calls, finish="tool_calls", split=True)]
    tools = ChatOptions(tools=[Tool(function=Function(name="weather", parameters={"type": "object"}))])
    answer = await run(vendor, ASK.model_copy(update={"chat": tools}))
    choice = choices_of(answer.deltas)[0]
    assert (choice.reasoning, choice.tool_calls, choice.finish_reason) == ("Hmm.", calls, "tool_calls")


async def test_texts_that_look_like_something_else(vendor: RunpodVendor) -> None:
    text = (" ", "\n", "d", "at", "a ", "[DONE]", "{}", "data: x")
    vendor.shape = "text"
    vendor.default = Script(text=text)
    assert (await run(vendor)).text == "".join(text)


async def test_a_worker_that_does_not_stream(vendor: RunpodVendor) -> None:
    """Its output is in the final state only."""
    for output in ("Hello", ["Hel", "lo"], {"text": "Hello"}, [{"choices": [{"tokens": ["Hel", "lo"]}]}]):
        vendor.default = Script(text=())
        vendor.shape = "text"
        vendor.overrides = {"output": output}
        answer = await run(vendor)
        assert (answer.text, answer.reasons) == ("Hello", ["stop"])


async def test_a_whole_completion_as_output(vendor: RunpodVendor) -> None:
    vendor.default = Script(text=())
    vendor.shape = "text"
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    vendor.overrides = {"output": [{"object": "chat.completion", "choices": [choice], "usage": usage}]}
    answer = await run(vendor)
    assert (answer.text, answer.reasons, answer.usage) == ("Hello", ["length"], Usage(3, 0, 4))


@pytest.mark.parametrize("output", [5, [5], {"image": "x"}, [{"choices": [{"tokens": 5}]}]])
async def test_output_that_is_not_text(vendor: RunpodVendor, output: Any) -> None:
    vendor.default = Script(text=())
    vendor.shape = "text"
    vendor.overrides = {"output": output}
    assert "not text" in (await failure(vendor)).message


# Lost responses


@shapes
async def test_a_lost_response_repeats_and_loses_nothing(vendor: RunpodVendor, shape: str) -> None:
    vendor.shape = shape
    async with started(vendor.spec()) as engine:
        for cut_after in range(len(TEXT) + 1):
            vendor.scripts = [Script(text=TEXT, cut_after=cut_after)]
            answer = await Answer().take(engine)
            assert (answer.text, answer.reasons) == (WHOLE, ["stop"])
            assert vendor.job.lost is None
            assert vendor.generated == cut_after + 1


async def test_a_lost_response_of_a_worker_that_does_not_aggregate(vendor: RunpodVendor) -> None:
    vendor.aggregates = False
    vendor.scripts = [Script(text=TEXT, cut_after=1)]
    answer = Answer()
    error = await failure(vendor, answer)
    assert "does not have the output" in error.message
    assert isinstance(error, CannotContinue)
    assert answer.text == TEXT[0]


async def test_outputs_that_are_not_aggregated_are_enough(vendor: RunpodVendor) -> None:
    vendor.aggregates = False
    async with started(vendor.spec()) as engine:
        for vendor.shape in SHAPES:
            answer = await Answer().take(engine)
            assert (answer.text, answer.reasons) == (WHOLE, ["stop"])


async def test_outputs_with_numbers_are_not_repeated_and_not_skipped(vendor: RunpodVendor) -> None:
    vendor.shape, vendor.numbers, vendor.repeats, vendor.batch = "text", True, True, 2
    assert (await run(vendor)).text == WHOLE


@pytest.mark.parametrize("status", [429, 500, 502])
async def test_refused_polls_lose_nothing(vendor: RunpodVendor, status: int) -> None:
    vendor.stream_statuses = [status, status, 200, status, 200]
    answer = await run(vendor, max_retries=2)
    assert answer.text == WHOLE
    assert paths(vendor).count("status") == 1
    assert vendor.generated == 1


async def test_a_refused_poll_that_names_a_delay_loses_nothing(
    vendor: RunpodVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delay is longer than a request is otherwise repeated after, but the job runs on at the provider."""
    monkeypatch.setattr("workers.engines.upstream.recovery.RESUME_DELAY_MAX_S", 0.01)
    vendor.stream_statuses, vendor.retry_after = [200, 429, 503], "5"
    vendor.batch = 1
    assert (await run(vendor, max_retries=0)).text == WHOLE
    assert vendor.generated == 1


@pytest.mark.parametrize("error", [True, 5, ["x"]])
async def test_errors_of_any_type(vendor: RunpodVendor, error: Any) -> None:
    vendor.default = Script(text=())
    vendor.shape = "text"
    vendor.overrides = {"status": "FAILED", "error": error}
    await failure(vendor)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_job_whose_worker_was_busy_is_run_again(vendor: RunpodVendor, status: int) -> None:
    """Its state is final, so it is not asked for again."""
    vendor.default = Script(text=())
    vendor.shape = "text"
    vendor.overrides = {"status": "FAILED", "error": f"vLLM returned HTTP {status}: overloaded"}
    async with started(vendor.spec(max_retries=1)) as engine:
        with pytest.raises(UpstreamBusy, match="overloaded"):
            await Answer().take(engine)
    assert vendor.generated == (2 if status == 503 else 1), "a rate limit without a delay is not repeated here"
    assert paths(vendor).count("status") == vendor.generated


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_the_key_of_a_worker_is_not_the_one_of_runpod(vendor: RunpodVendor, status: int) -> None:
    vendor.default = Script(text=())
    vendor.shape = "text"
    vendor.overrides = {"status": "FAILED", "error": f"vLLM returned HTTP {status}: Incorrect API key provided"}
    async with started(vendor.spec(max_retries=1)) as engine:
        with pytest.raises(UpstreamError, match="Incorrect API key"):
            await Answer().take(engine)
        assert not any(endpoint.health.key_failed for endpoint in engine._endpoints)
        assert engine.gate.breaker is None
    assert vendor.generated == 1


@pytest.mark.parametrize("status", [404, 405])
async def test_an_endpoint_without_streams(vendor: RunpodVendor, status: int) -> None:
    vendor.stream_statuses = [status]
    answer = await run(vendor)
    assert (answer.text, paths(vendor)) == (WHOLE, ["run", "stream", "status"])


async def test_an_answer_that_has_come_needs_no_final_state(vendor: RunpodVendor) -> None:
    async with started(vendor.spec()) as engine:
        for status in (404, 410, 429, 500):
            vendor.status_statuses = [status] * 3
            answer = await Answer().take(engine)
            assert (answer.text, answer.reasons) == (WHOLE, ["stop"])


# States


async def test_an_answer_costs_few_requests(vendor: RunpodVendor) -> None:
    vendor.batch = 100
    await run(vendor)
    assert paths(vendor) == ["run", "stream", "status"]


async def test_an_end_that_is_streamed_again_and_again_is_the_end(vendor: RunpodVendor) -> None:
    vendor.repeats_end = True
    assert (await run(vendor)).text == WHOLE


async def test_polls_become_rarer_while_a_job_waits(vendor: RunpodVendor) -> None:
    vendor.states = ["IN_QUEUE"] * 6
    started_at = asyncio.get_running_loop().time()
    await run(vendor, poll_interval_s=0.001, max_poll_interval_s=0.02)
    assert asyncio.get_running_loop().time() - started_at >= 0.001 * sum(1.5**n for n in range(6))


async def test_a_state_that_goes_back_begins_the_answer_again(vendor: RunpodVendor) -> None:
    """The endpoint gives the job to another worker: the answer is read from the final state."""
    vendor.shape = "text"
    vendor.states = ["IN_PROGRESS", "IN_PROGRESS", "COMPLETED", "IN_QUEUE", "IN_PROGRESS", "SOMETHING"]
    assert (await run(vendor)).text == WHOLE
    assert vendor.generated == 1


@pytest.mark.parametrize(
    ("overrides", "message", "kind"),
    [
        ({"status": "FAILED", "error": "CUDA out of memory at http://10.1.2.3/x"}, "CUDA out of memory", EngineError),
        (
            {"status": "FAILED", "error": '{"error_type": "E", "error_message": "no GPU", "error_traceback": "x"}'},
            "no GPU",
            EngineError,
        ),
        ({"status": "FAILED", "output": {"error": "no CUDA"}}, "no CUDA", EngineError),
        ({"status": "FAILED"}, "no reason", EngineError),
        ({"status": "CANCELLED"}, "cancelled", EngineError),
        ({"status": "TIMED_OUT"}, "execution timeout", EngineError),
        ({"status": 7}, "upstream", EngineError),
        (
            {
                "status": "FAILED",
                "error": str(
                    {
                        "message": 'vLLM returned HTTP 400: {"error": {"message": "too long", "param": "max_tokens"}}',
                        "type": "worker_error",
                        "code": None,
                    }
                ),
            },
            "too long",
            InvalidRequest,
        ),
    ],
)
async def test_a_final_state_without_an_answer(
    vendor: RunpodVendor, overrides: dict[str, Any], message: str, kind: type[Exception]
) -> None:
    vendor.default = Script(text=())
    vendor.shape = "text"
    vendor.overrides = overrides
    async with started(vendor.spec(max_retries=1)) as engine:
        with pytest.raises(kind, match=message) as caught:
            await Answer().take(engine)
    assert "10.1.2.3" not in str(caught.value)
    assert vendor.generated == 1


@pytest.mark.parametrize(
    ("options", "states", "message"),
    [
        ({"start_timeout_s": 0.05}, ["IN_QUEUE"] * 1000, "did not start"),
        ({"read_timeout_s": 0.05}, ["IN_PROGRESS"] * 1000, "did not answer"),
    ],
)
async def test_an_endless_job_is_given_up_and_cancelled(
    vendor: RunpodVendor, options: dict[str, Any], states: list[str], message: str
) -> None:
    vendor.states = states
    vendor.default = Script(text=(), hang_after=0)
    error = await failure(vendor, **options, max_retries=1)
    assert message in error.message
    assert vendor.cancelled.is_set()
    assert vendor.generated == 1


@pytest.mark.parametrize("status", [404, 410])
async def test_a_job_that_is_gone(vendor: RunpodVendor, status: int) -> None:
    """Without any output it is created again, once."""
    vendor.stream_statuses, vendor.status_statuses = [status], [status]
    assert (await run(vendor)).text == WHOLE
    vendor.stream_statuses, vendor.status_statuses = [status] * 2, [status] * 2
    error = await failure(vendor)
    assert "no longer" in error.message
    assert vendor.generated == 4


# The next attempt, and the end


@shapes
async def test_the_next_worker_continues_the_job(vendor: RunpodVendor, shape: str) -> None:
    vendor.shape = shape
    async with started(vendor.spec()) as engine:
        for after in (0, 2, len(TEXT)):
            vendor.scripts = [Script(text=TEXT, hang_after=after)]
            first = await Answer().take_text(engine, len("".join(TEXT[:after])))
            job = vendor.job
            job.script, job.hangs = Script(text=TEXT), False
            job.outputs.clear()
            await vendor.generate(job)
            assert engine.resume_mode(ASK, first.prior) is Resume.EXACT
            second = await Answer().take(engine, prior=first.prior)
            assert (first.text + second.text, second.reasons) == (WHOLE, ["stop"])
            assert second.state is None
    assert vendor.generated == 3


async def test_a_cancel_reaches_the_provider(vendor: RunpodVendor) -> None:
    vendor.scripts = [Script(text=TEXT, hang_after=1)]
    async with started(vendor.spec()) as engine:
        answer = await Answer().take_text(engine, 1)
        assert answer.state is not None
        await engine.cancel(answer.state)
    assert vendor.job.status == "CANCELLED"
    assert vendor.seen[-1].path == "/v2/endpoint1/cancel/job0-u1"


async def test_wait_and_run_time_are_recorded(vendor: RunpodVendor) -> None:
    metrics = worker_metrics("up")
    async with started(vendor.spec(price_per_second=0.01), metrics) as engine:
        await Answer().take(engine)
    samples = exported(metrics)
    assert samples["headrace_upstream_queue_seconds_sum"] == WAITED_MS / 1000
    assert samples["headrace_upstream_compute_seconds_total"] == RAN_MS / 1000
    assert samples["headrace_upstream_compute_cost_total"] == pytest.approx(RAN_MS / 1000 * 0.01)
