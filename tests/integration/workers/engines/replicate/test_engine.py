"""Predictions of Replicate: lost streams, polls, cold starts, cancels, and what a server should not send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.config.models.replicate import ReplicateModel
from shared.domain.content import ImagePart
from shared.domain.errors import InvalidRequest
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest, Message, Sampling
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
from tests.support.vendors.replicate import EPOCH, ReplicateVendor
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY
from workers.engines.base import CannotContinue, Prior
from workers.engines.resume import Resume

__all__ = ["no_backoff"]

pytestmark = pytest.mark.usefixtures("no_backoff")


@pytest.fixture
async def vendor() -> AsyncIterator[ReplicateVendor]:
    async with ReplicateVendor().serve() as vendor:
        vendor.default = Script(text=TEXT)
        yield vendor


# Requests


@pytest.mark.parametrize(
    ("target", "path", "version"),
    [
        ({"model": "meta/llama"}, "/v1/models/meta/llama/predictions", None),
        ({"deployment": "acme/mine"}, "/v1/deployments/acme/mine/predictions", None),
        (
            {"version": "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b662"},
            "/v1/predictions",
            "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b662",
        ),
    ],
)
async def test_routes(vendor: ReplicateVendor, target: dict[str, str], path: str, version: str | None) -> None:
    entry = vendor.spec(cancel_after_s=60).model_dump(exclude_unset=True) | {"model": None, **target}
    async with started(ReplicateModel.model_validate(entry)) as engine:
        await Answer().take(engine)
    create = vendor.seen[0]
    assert (create.method, create.path) == ("POST", path)
    assert create.body.get("version") == version
    assert create.body["stream"] is True
    assert create.headers["authorization"] == f"Bearer {KEY}"
    assert create.headers["cancel-after"] == "60s"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, {"prompt": "System: Be brief.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: Go\n\nAssistant:", "max_tokens": 9}),
        (
            {
                "system_prompt": "system_prompt",
                "parameters": {"max_tokens": "max_new_tokens", "stop": "stop_sequences", "temperature": "temperature"},
                "constants": {"prompt_template": "{prompt}"},
            },
            {
                "system_prompt": "Be brief.",
                "prompt": "User: Hi\n\nAssistant: Yes?\n\nUser: Go\n\nAssistant:",
                "max_new_tokens": 9,
                "stop_sequences": "END,###",
                "temperature": 0,
                "prompt_template": "{prompt}",
            },
        ),
        (
            {"conversation": "messages", "parameters": {"stop": "stop"}, "stop_as": "list"},
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Yes?"},
                    {"role": "user", "content": "Go"},
                ],
                "stop": ["END", "###"],
            },
        ),
    ],
)
async def test_the_spec_names_the_models_inputs(
    vendor: ReplicateVendor, inputs: dict[str, Any], expected: dict[str, Any]
) -> None:
    messages = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Yes?"),
        Message(role="user", content="Go"),
    ]
    sampling = Sampling(max_tokens=9, stop=["END", "###"], temperature=0)
    if not inputs:
        sampling = Sampling(max_tokens=9)
    await run(vendor, GenerateRequest(messages=messages, sampling=sampling), input=inputs)
    assert vendor.prediction.input == expected


async def test_a_template_renders_conversations(vendor: ReplicateVendor, tmp_path: Any) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    await run(vendor, input={"chat_template": str(file)})
    assert vendor.prediction.input["prompt"] == "<user>Hello<assistant>"
    developer = Message(role="developer", content="Be brief.")
    request = GenerateRequest(messages=[developer, *(ASK.messages or ())])
    await run(vendor, request, input={"chat_template": str(file)})
    assert vendor.prediction.input["prompt"] == "<system>Be brief.<user>Hello<assistant>"
    with pytest.raises(InvalidRequest, match="chat_template"):
        await run(vendor, input={"chat_template": str(tmp_path / "missing.jinja")})


async def test_stop_strings_with_commas_cannot_be_sent_separated_by_commas(vendor: ReplicateVendor) -> None:
    request = ASK.model_copy(update={"sampling": Sampling(stop=["a, b"])})
    with pytest.raises(InvalidRequest, match="stop"):
        await run(vendor, request)
    assert not vendor.seen


async def test_parameters_of_the_model_are_inputs_and_images_are_refused(vendor: ReplicateVendor) -> None:
    await run(vendor, ASK.model_copy(update={"extra_body": {"top_a": 1}}), extra_body=["top_a"])
    assert vendor.prediction.input["top_a"] == 1
    image = ImagePart(type="image", url="https://example.com/a.png")
    with pytest.raises(InvalidRequest, match="text only"):
        await run(vendor, GenerateRequest(messages=[Message(role="user", content=[image])]))


# Streams


async def test_an_answer_costs_three_requests(vendor: ReplicateVendor) -> None:
    answer = await run(vendor)
    assert answer.text == WHOLE
    assert [seen.path.split("/")[2] for seen in vendor.seen] == ["models", "stream", "predictions"]
    assert (answer.deltas[-1].finish_reason, answer.usage) == ("stop", Usage(7, 0, 2))
    assert answer.state is not None
    assert answer.state.id == "pred0"
    assert answer.cursor == f"{EPOCH}:{len(TEXT) - 1}"


@pytest.mark.parametrize("offers_resume", [True, False])
async def test_a_lost_stream_repeats_and_loses_nothing(vendor: ReplicateVendor, offers_resume: bool) -> None:
    vendor.offers_resume = offers_resume
    async with started(vendor.spec()) as engine:
        for cut_after in range(len(TEXT) + 1):
            vendor.states = ["processing"]
            vendor.scripts = [Script(text=TEXT, cut_after=cut_after)]
            answer = await Answer().take(engine)
            assert answer.text == WHOLE
            assert vendor.prediction.streams == [None, f"{EPOCH}:{cut_after - 1}" if cut_after else None]
    assert vendor.generated == len(TEXT) + 1


@pytest.mark.parametrize("name", ["", "abc", "same"])
async def test_a_stream_without_a_position_is_continued_by_polls(vendor: ReplicateVendor, name: str) -> None:
    """Its events have no ids, or ids that do not tell their order."""
    vendor.event_id = lambda position: f"{name}{position}" if name == "abc" else "5" if name else ""
    vendor.states = ["processing", "processing"]
    vendor.scripts = [Script(text=TEXT, cut_after=2)]
    answer = await run(vendor)
    assert answer.text == WHOLE
    assert vendor.prediction.streams == [None]
    assert vendor.prediction.polls == 3


async def test_repeated_events_are_dropped(vendor: ReplicateVendor) -> None:
    vendor.repeats = True
    assert (await run(vendor)).text == WHOLE


async def test_text_that_looks_like_json_or_has_lines_is_kept(vendor: ReplicateVendor) -> None:
    text = ('{"a": 1}', "\n\n", " 42 ", "[DONE]", "null", "data: x\n", "a: b")
    vendor.default = Script(text=text)
    assert (await run(vendor)).text == "".join(text)


async def test_a_refused_stream_is_replaced_by_polls(vendor: ReplicateVendor) -> None:
    async with started(vendor.spec()) as engine:
        for generated, status in enumerate((302, 403, 404, 406, 410, 500, 503), 1):
            vendor.stream_statuses = [status] * 5
            vendor.states = ["processing"] * 5
            answer = await Answer().take(engine)
            assert answer.text == WHOLE
            assert len(vendor.prediction.streams) <= 3
            assert vendor.generated == generated


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.invalid/v1/stream/pred0",
        "http://127.0.0.1:1@{host}/v1/stream/pred0",
        "//{host}/v1/stream/pred0",
        "file:///etc/passwd",
        "http://{host}.elsewhere.invalid/",
        "http://[",
        "",
    ],
)
async def test_a_stream_elsewhere_is_not_opened(
    vendor: ReplicateVendor, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.stream_url = url.format(host=vendor.url.removeprefix("http://")) or "x"
    vendor.states = ["processing"] * 2
    answer = await run(vendor)
    assert answer.text == WHOLE
    assert not vendor.prediction.streams
    assert KEY not in caplog.text


async def test_a_stream_on_a_listed_host_is_opened(vendor: ReplicateVendor) -> None:
    host = vendor.url.removeprefix("http://127.0.0.1")
    vendor.stream_url = f"http://localhost{host}/v1/stream/pred0"
    answer = await run(vendor, stream_hosts=[f"localhost{host}"])
    assert (answer.text, vendor.prediction.streams) == (WHOLE, [None])


# States


async def test_output_grows_between_polls(vendor: ReplicateVendor) -> None:
    vendor.streams = False
    vendor.states = ["starting", "processing", "processing", "processing"]
    answer = await run(vendor)
    assert answer.text == WHOLE
    assert vendor.prediction.polls == 5


@pytest.mark.parametrize("output", [WHOLE, list(TEXT), [WHOLE, ""]])
async def test_output_is_a_text_or_a_list_of_texts(vendor: ReplicateVendor, output: Any) -> None:
    vendor.streams = False
    vendor.overrides = {"output": output}
    assert (await run(vendor)).text == WHOLE


async def test_an_empty_answer(vendor: ReplicateVendor) -> None:
    vendor.streams = False
    vendor.overrides = {"output": None}
    answer = await run(vendor)
    assert [(delta.text, delta.finish_reason) for delta in answer.deltas] == [("", "stop")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"output": {"image": "x"}}, "not text"),
        ({"output": [1, 2]}, "not text"),
        ({"output": None, "data_removed": True}, "deleted"),
        ({"output": ["Something else"]}, "changed"),
        ({"status": "failed", "error": "CUDA out of memory at http://10.1.2.3/x"}, "CUDA out of memory"),
        ({"status": "canceled"}, "cancelled"),
        ({"status": "aborted"}, "did not start"),
        ({"id": "another"}, "not a prediction"),
        ({"id": "../../account"}, "upstream"),
        ({"status": None}, "upstream"),
    ],
)
async def test_a_final_state_without_the_answer(
    vendor: ReplicateVendor, overrides: dict[str, Any], message: str
) -> None:
    vendor.event_id = lambda _: ""
    vendor.scripts = [Script(text=TEXT, cut_after=1)]
    vendor.overrides_after_stream = overrides
    answer = Answer()
    error = await failure(vendor, answer, max_retries=1)
    assert message in error.message
    assert answer.text == TEXT[0]
    assert "10.1.2.3" not in error.message
    assert vendor.generated == 1
    assert isinstance(error, CannotContinue) is (message in ("deleted", "changed"))


async def test_deleted_output_of_which_nothing_was_read(vendor: ReplicateVendor) -> None:
    vendor.streams = False
    vendor.overrides = {"output": None, "data_removed": True}
    error = await failure(vendor)
    assert "deleted" in error.message
    assert vendor.generated == 2


async def test_a_stream_that_omits_its_end_is_completed_from_the_output(vendor: ReplicateVendor) -> None:
    vendor.overrides = {"output": [*TEXT, " Five."]}
    assert (await run(vendor)).text == WHOLE + " Five."


async def test_the_stream_counts_if_the_output_differs_or_is_deleted(vendor: ReplicateVendor) -> None:
    for output in (["Something else"], None):
        vendor.overrides = {"output": output}
        assert (await run(vendor)).text == WHOLE


async def test_the_limit_of_tokens_is_the_reason_to_stop(vendor: ReplicateVendor) -> None:
    request = ASK.model_copy(update={"sampling": Sampling(max_tokens=2)})
    assert (await run(vendor, request)).deltas[-1].finish_reason == "length"


async def test_without_token_counts_the_pieces_are_counted(vendor: ReplicateVendor) -> None:
    vendor.overrides = {"metrics": {"predict_time": "soon"}}
    answer = await run(vendor)
    assert answer.usage is None
    assert sum(delta.tokens for delta in answer.deltas) == len(TEXT)


async def test_a_state_that_goes_back_is_waited_for(vendor: ReplicateVendor) -> None:
    vendor.streams = False
    vendor.states = ["starting", "processing", "starting", "queued", "processing"]
    assert (await run(vendor)).text == WHOLE
    assert vendor.generated == 1


@pytest.mark.parametrize("status", [429, 500, 502])
async def test_failed_polls_are_repeated(vendor: ReplicateVendor, status: int) -> None:
    vendor.streams = False
    vendor.poll_statuses = [status, status, 200, status, status, 200]
    vendor.states = ["processing"]
    assert (await run(vendor, max_retries=2)).text == WHOLE
    assert vendor.generated == 1


@pytest.mark.parametrize("status", [404, 410])
async def test_a_prediction_that_is_gone(vendor: ReplicateVendor, status: int) -> None:
    """Without any output it is created again, once."""
    vendor.streams = False
    vendor.poll_statuses = [status]
    assert (await run(vendor)).text == WHOLE
    vendor.poll_statuses = [status] * 2
    error = await failure(vendor)
    assert not isinstance(error, InvalidRequest)
    assert "no longer" in error.message
    assert vendor.generated == 4


async def test_a_stream_that_ended_needs_no_state(vendor: ReplicateVendor) -> None:
    async with started(vendor.spec()) as engine:
        for status in (404, 410, 429, 500):
            vendor.poll_statuses = [status] * 3
            answer = await Answer().take(engine)
            assert (answer.text, answer.reasons) == (WHOLE, ["stop"])


@pytest.mark.parametrize(
    ("options", "states", "message"),
    [
        ({"start_timeout_s": 0.05}, ["starting"] * 1000, "did not start"),
        ({"read_timeout_s": 0.05}, ["processing"] * 1000, "did not answer"),
    ],
)
async def test_an_endless_prediction_is_given_up_and_cancelled(
    vendor: ReplicateVendor, options: dict[str, Any], states: list[str], message: str
) -> None:
    vendor.streams = False
    vendor.default = Script(text=(), hang_after=0)
    vendor.states = states
    error = await failure(vendor, **options, max_retries=1)
    assert message in error.message
    assert vendor.cancelled.is_set()
    assert vendor.generated == 1


# The next attempt, and the end


@pytest.mark.parametrize("logged", [True, False])
async def test_the_next_worker_continues_the_prediction(vendor: ReplicateVendor, logged: bool) -> None:
    """`logged`: the log has the position in the stream."""
    async with started(vendor.spec()) as engine:
        for after in range(len(TEXT) + 1):
            vendor.scripts = [Script(text=TEXT, hang_after=after)]
            first = await Answer().take_text(engine, len("".join(TEXT[:after])))
            assert vendor.prediction.status == "processing" or not after
            vendor.prediction.script = Script(text=TEXT)
            vendor.states = ["processing"]
            prior = first.prior if logged else Prior(first.deltas, True, first.state, None)
            assert engine.resume_mode(ASK, prior) is Resume.EXACT
            second = await Answer().take(engine, prior=prior)
            assert first.text + second.text == WHOLE
            assert second.state is None
    assert vendor.generated == len(TEXT) + 1


async def test_a_cancel_reaches_the_provider(vendor: ReplicateVendor) -> None:
    vendor.scripts = [Script(text=TEXT, hang_after=1)]
    async with started(vendor.spec()) as engine:
        answer = await Answer().take_text(engine, 1)
        assert answer.state is not None
        await engine.cancel(answer.state)
    assert vendor.prediction.status == "canceled"
    assert vendor.seen[-1].path == "/v1/predictions/pred0/cancel"


async def test_wait_and_run_time_are_recorded(vendor: ReplicateVendor) -> None:
    metrics = worker_metrics("up")
    async with started(vendor.spec(price_per_second=0.002), metrics) as engine:
        await Answer().take(engine)
    samples = exported(metrics)
    assert samples["headrace_upstream_queue_seconds_sum"] == pytest.approx(2.5, abs=0.01)
    assert samples["headrace_upstream_compute_seconds_total"] == 1.5
    assert samples["headrace_upstream_compute_cost_total"] == pytest.approx(0.003)


async def test_concurrent_predictions_do_not_mix(vendor: ReplicateVendor) -> None:
    vendor.scripts = [Script(text=(f"{number} ", "done"), cut_after=number % 3) for number in range(12)]
    async with started(vendor.spec()) as engine:
        answers = await asyncio.gather(*(Answer().take(engine) for _ in range(12)))
    assert sorted(answer.text for answer in answers) == sorted(f"{number} done" for number in range(12))
    assert vendor.generated == 12
