"""Conversations that outgrow their model's context are shortened as the request, the key or the model says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api.context.shortening import Shortening
from api.context.window import ContextWindow
from api.jobs.admission import Admission
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import ContextOptions, KeyOptions, RequestOptions, TokenLimits
from shared.domain.errors import InvalidRequest
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

OWNER = Owner(1, 1)
WINDOW = ContextOptions(strategy="sliding_window")
ERROR = ContextOptions()
METRICS = Metrics(Exporter.API, ["sim"])


def model(name: str = "sim", *, limit: int = 200, context: ContextOptions | None = None) -> SimulatedModel:
    options = {"max_model_len": limit}
    return SimulatedModel.model_validate(
        {"name": name, "engine": "simulated", "options": options, "context": context and context.model_dump()}
    )


def conversation(turns: int, words: int = 9) -> list[Message]:
    """Turns of two messages with 10 tokens each, and a question."""
    text = "word " * words
    pair = [Message(role="user", content=text), Message(role="assistant", content=text)]
    return [*(pair * turns), Message(role="user", content="last " * words)]


def job(messages: list[Message], max_tokens: int | None = None, **fields: Any) -> NewJob:
    request = GenerateRequest(messages=messages, sampling=Sampling(max_tokens=max_tokens))
    return NewJob(OWNER, "sim", 3, request, **fields)


async def shorten(
    new: NewJob, spec: SimulatedModel | OpenAIModel | None = None, key: ContextOptions | None = None
) -> NewJob:
    registry = Registry({"sim": spec or model()})
    principal = replace(Principal.of(OWNER), options=KeyOptions(context=key))
    return await Shortening(registry, ContextWindow(registry), metrics=METRICS).shorten(principal, new)


async def test_the_request_decides_before_the_key_and_the_key_before_the_model() -> None:
    messages = conversation(9)

    async def is_shortened(
        request: ContextOptions | None, key: ContextOptions | None, spec: ContextOptions | None
    ) -> bool:
        options = RequestOptions(context=request)
        new = await shorten(job(messages, options=options), model(context=spec), key)
        return new.request.messages != messages

    assert not await is_shortened(None, None, None)
    assert await is_shortened(None, None, WINDOW)
    assert await is_shortened(None, WINDOW, None)
    assert await is_shortened(WINDOW, None, None)
    assert await is_shortened(WINDOW, ERROR, ERROR)
    assert not await is_shortened(ERROR, WINDOW, WINDOW)
    assert not await is_shortened(None, ERROR, WINDOW)


async def test_the_job_says_what_was_dropped() -> None:
    new = await shorten(job([Message(role="system", content="be brief"), *conversation(9)]), key=WINDOW)
    assert [message.role for message in new.request.messages or ()] == ["system", *["user", "assistant"] * 4, "user"]
    assert new.decisions.stored() == {
        "context": {"strategy": "sliding_window", "dropped_messages": 10, "tokens_before": 194, "tokens_after": 94}
    }
    assert new.decisions.headers() == {}


@pytest.mark.parametrize(
    ("max_tokens", "limit", "left"),
    [(None, 240, 19), (None, 230, 9), (100, 340, 19), (100, 330, 9), (390, 400, 9)],
)
async def test_max_tokens_leave_the_prompt_at_least_half_of_the_context(
    max_tokens: int | None, limit: int, left: int
) -> None:
    new = await shorten(job(conversation(9), max_tokens), model(limit=limit), WINDOW)
    assert len(new.request.messages or ()) == left


async def test_a_trigger_in_tokens_applies_without_a_known_length() -> None:
    spec = OpenAIModel.model_validate(
        {"name": "sim", "engine": "openai", "model": "m", "options": {"base_url": "http://localhost:1/v1"}}
    )
    messages = conversation(9, words=20)
    assert (await shorten(job(messages), spec, WINDOW)).request.messages == messages
    options = ContextOptions(strategy="sliding_window", trigger_tokens=300)
    new = await shorten(job(messages), spec, options)
    assert len(new.request.messages or ()) == 3
    assert new.decisions.tokens_estimated
    assert new.decisions.headers() == {"x-headrace-tokens-estimated": "true"}
    far = ContextOptions(strategy="sliding_window", trigger_tokens=300_000)
    assert len((await shorten(job(conversation(9)), model(), far)).request.messages or ()) == 9


async def test_a_limit_of_the_prompt_limits_the_room() -> None:
    registry = Registry({"sim": model(context=WINDOW, limit=8192)})
    options = KeyOptions(token_limits=TokenLimits(max_input=100))
    admission = Admission(registry, ContextWindow(registry))
    new = await admission.admit(replace(Principal.of(OWNER), options=options), job(conversation(9)))
    assert new.decisions.context is not None
    assert (new.decisions.context.tokens_after or 0) <= 80


@pytest.mark.parametrize("limits", [{"max_output": 300}, {"default_output": 300}])
async def test_a_max_tokens_that_a_limit_has_set_does_not_shorten_the_conversation(limits: dict[str, int]) -> None:
    registry = Registry({"sim": model(context=WINDOW, limit=300)})
    admission = Admission(registry, ContextWindow(registry))
    options = KeyOptions(token_limits=TokenLimits(**limits))
    principal = replace(Principal.of(OWNER), options=options)
    new = await admission.admit(principal, job(conversation(9)))
    assert new.decisions.context is None
    assert new.request.sampling.max_tokens == 300 - 191
    requested = await admission.admit(principal, job(conversation(9), max_tokens=150))
    assert requested.decisions.context is not None


async def test_a_newest_turn_that_does_not_fit_is_an_error() -> None:
    messages = [*conversation(2), Message(role="assistant", content="x"), Message(role="user", content="long " * 300)]
    with pytest.raises(InvalidRequest, match=r"context is 200 tokens.*never dropped, have 302") as caught:
        await shorten(job(messages), key=WINDOW)
    assert caught.value.param == "messages"


async def test_an_oldest_turn_that_does_not_fit_is_dropped() -> None:
    messages = [Message(role="user", content="long " * 300), Message(role="assistant", content="x"), *conversation(1)]
    new = await shorten(job(messages), key=WINDOW)
    assert new.request.messages == messages[2:]


async def test_a_text_prompt_is_not_a_conversation() -> None:
    new = NewJob(OWNER, "sim", 3, GenerateRequest(prompt="x " * 1000))
    assert await shorten(new, key=WINDOW) is new


async def test_a_request_that_only_counts_tokens_counts_all() -> None:
    new = job(conversation(9))
    counting = replace(new, request=new.request.model_copy(update={"prompt_only": True}))
    assert await shorten(counting, key=WINDOW) is counting


async def test_a_model_for_summaries_that_does_not_exist() -> None:
    options = ContextOptions(strategy="summarize", model="other")
    with pytest.raises(InvalidRequest, match=r"context\.model: the model `other` does not exist") as caught:
        await shorten(job(conversation(1), options=RequestOptions(context=options)))
    assert caught.value.param == "context.model"
    assert (await shorten(job(conversation(1)), key=options)).decisions.headers() == {}
    new = await shorten(job(conversation(9)), key=options)  # of a key, it may have been removed later
    assert new.decisions.headers() == {"x-headrace-context": "sliding_window; requested=summarize"}
    assert new.decisions.context is not None
    assert new.decisions.context.strategy == "sliding_window"
    assert new.decisions.context.note is not None


async def test_a_request_names_only_models_for_summaries_that_the_operator_allows() -> None:
    models = {name: model(name) for name in ("large", "cheap", "other")}
    models["sim"] = model(context=ContextOptions(model="cheap"))
    registry = Registry(models)
    shortening = Shortening(registry, ContextWindow(registry))

    async def check(name: str, key: ContextOptions | None = None) -> None:
        options = RequestOptions(context=ContextOptions(strategy="summarize", model=name))
        principal = replace(Principal.of(OWNER), options=KeyOptions(context=key))
        await shortening.shorten(principal, job(conversation(1), options=options))

    await check("sim")
    await check("cheap")
    await check("large", ContextOptions(strategy="summarize", model="large"))
    with pytest.raises(InvalidRequest) as caught:
        await check("large")
    assert caught.value.param == "context.model"
    assert caught.value.message == (
        "context.model: the model `large` may not write summaries for this request. Name one of `cheap`, `sim`,"
        " or leave it out"
    )


async def test_the_checks_of_admission_see_the_shortened_conversation() -> None:
    registry = Registry({"sim": model(context=WINDOW)})
    admission = Admission(registry, ContextWindow(registry))
    new = await admission.admit(Principal.of(OWNER), job(conversation(30)))
    assert len(new.request.messages or ()) == 11
    registry.replace({"sim": model()})
    with pytest.raises(InvalidRequest, match="context is 200 tokens"):
        await admission.admit(Principal.of(OWNER), job(conversation(30)))
