"""The limit of an answer whose upstream sends the same output, or the prompt, again and again."""

from __future__ import annotations

import pytest

from shared.domain.request import GenerateRequest, Message, Sampling
from tests.integration.workers.engines.answer import Answer, no_backoff, started
from tests.support.vendors.replicate import ReplicateVendor
from tests.support.vendors.responses import ResponsesVendor
from tests.support.vendors.script import Script
from tests.support.vendors.triton import TritonVendor
from workers.engines.base import UpstreamError
from workers.engines.upstream import answer_limit

__all__ = ["no_backoff"]

# An answer of 20 tokens may have 20,000 bytes, see `limit`.
TOKENS = 20
ASK = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=TOKENS))
LONG = Script(text=("word " * 20,) * TOKENS)
ENDLESS = Script(text=("word " * 20,) * 500)


@pytest.fixture(autouse=True)
def limit(no_backoff: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_limit, "MARGIN_TOKENS", 0)
    monkeypatch.setattr(answer_limit, "TOKEN_BYTES", 100)


async def test_events_that_repeat_the_text() -> None:
    vendor = TritonVendor()
    vendor.cumulative, vendor.scripts = True, [LONG, ENDLESS]
    async with vendor.serve(), started(vendor.spec(output="cumulative")) as engine:
        assert (await Answer().take(engine, ASK)).text == "".join(LONG.text)
        with pytest.raises(UpstreamError, match=answer_limit.ENDLESS):
            await Answer().take(engine, ASK)


async def test_states_that_repeat_the_output_and_the_prompt() -> None:
    vendor = ReplicateVendor()
    vendor.streams, vendor.scripts = False, [LONG, ENDLESS]
    vendor.states = ["starting"] * 20 + ["processing"] * 20
    ask = ASK.model_copy(update={"messages": [Message(role="user", content="Hello " * 1000)]})
    async with vendor.serve(), started(vendor.spec()) as engine:
        assert (await Answer().take(engine, ask)).text == "".join(LONG.text)
        with pytest.raises(UpstreamError, match=answer_limit.ENDLESS):
            await Answer().take(engine, ask)


async def test_a_retrieved_response_that_has_come_before() -> None:
    """Only the rest of it counts."""
    vendor = ResponsesVendor()
    half = TOKENS // 2
    vendor.scripts = [Script(text=LONG.text, cut_after=half), Script(text=("a", ENDLESS.text[0] * 500), cut_after=1)]
    vendor.streams_again = False
    async with vendor.serve(), started(vendor.spec()) as engine:
        assert (await Answer().take(engine, ASK)).text == "".join(LONG.text)
        with pytest.raises(UpstreamError, match=answer_limit.ENDLESS):
            await Answer().take(engine, ASK)


async def test_responses_without_any_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read counts a little."""
    monkeypatch.setattr(answer_limit, "READ_BYTES", 1000)
    vendor = ReplicateVendor()
    vendor.streams, vendor.states = False, ["starting"] * 1000
    async with vendor.serve(), started(vendor.spec()) as engine:
        with pytest.raises(UpstreamError, match=answer_limit.ENDLESS):
            await Answer().take(engine, ASK)
    assert len(vendor.seen) < 30
