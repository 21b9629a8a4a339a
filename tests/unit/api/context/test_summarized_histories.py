"""The request that is stored after a generated conversation was shortened, with and without a summary."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import hypothesis
import hypothesis.strategies as some
import pytest

from api.context.shortening import Shortening
from api.context.summaries import NoSummary, Order, Summaries, SummaryJobs
from api.context.summary_store import StoredSummary
from api.context.transcript import introduction
from api.context.window import ContextWindow
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import ContextOptions, KeyOptions, TokenLimits
from shared.domain.content import TextPart
from shared.domain.errors import InvalidRequest
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import CacheBreakpoint, GenerateRequest, Message
from tests.support.examples import example_count
from tests.unit.api.context.histories import history
from tests.unit.api.context.test_cut import links

OWNER = Owner(1, 1)
INSTRUCTIONS = ("system", "developer")


class Written(Summaries):
    """Summaries with a given text; none if there is no text."""

    def __init__(self, text: str | None) -> None:  # without a store and jobs
        self.text = text
        self.orders: list[Order] = []

    async def summary(self, jobs: SummaryJobs, principal: Principal, order: Order) -> StoredSummary:
        self.orders.append(order)
        if self.text is None:
            raise NoSummary("the summary's job failed")
        return StoredSummary(b"", self.text, "job_1", "c")


def generated(seed: int, *, usual: bool) -> GenerateRequest:
    """A conversation of which each message has a number, with markers for caches and failed results of tools."""
    chance = random.Random(seed)
    messages, points = [], []
    found = history(seed, usual=usual).messages
    if chance.random() < 0.15:  # a conversation that the user has not begun
        found = [message for message in found if message.role != "user"]
    for number, message in enumerate(found):
        text = f"#{number} {message.content}"
        if message.role == "user" and chance.random() < 0.3:
            parts = [TextPart(type="text", text=part) for part in (text, "more")]
            messages.append(message.model_copy(update={"content": parts}))
            size = len(parts)
        else:
            messages.append(message.model_copy(update={"content": text}))
            size = len(text)
        if chance.random() < 0.3:
            points.append(CacheBreakpoint(message=number, end=chance.choice((None, 1, chance.randint(1, size), size))))
    if chance.random() < 0.3:
        points.insert(0, CacheBreakpoint(tool=0))
    tools = [number for number, message in enumerate(messages) if message.role == "tool"]
    return GenerateRequest.model_construct(
        messages=messages,
        cache_breakpoints=points,
        tool_errors=[number for number in tools if chance.random() < 0.3],
    )


def number_of(message: Message, summary: str | None) -> int | None:
    """The number that `generated` gave a message; None: it is only the summary."""
    text = message.text.removeprefix(summary or "").lstrip("\n")
    return int(text[1:].split()[0]) if text else None


def marked(request: GenerateRequest, summary: str | None) -> list[tuple[int | None, str]]:
    """The messages with markers, and the texts up to these, without the summary."""
    found = []
    for point in request.cache_breakpoints:
        if point.message is not None:
            message = (request.messages or [])[point.message]
            content = message.content if isinstance(message.content, list) else [*(message.content or "")]
            pieces = [piece if isinstance(piece, str) else piece.text for piece in content[: point.end]]  # type: ignore[union-attr]
            text = "".join(pieces).removeprefix(summary or "").lstrip("\n")
            found.append((number_of(message, summary), text))
    return found


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as started:
        yield started


@example_count(60, long=100_000)
@hypothesis.example(seed=378, usual=True, length=60, share=0.5, trigger=0.8, words=9, max_input=None)
@hypothesis.given(
    seed=some.integers(0, 2**32),
    usual=some.booleans(),
    length=some.integers(60, 1500),
    share=some.floats(0.1, 0.95),
    trigger=some.sampled_from([0.8, 1]),
    words=some.none() | some.integers(0, 120),
    max_input=some.none() | some.integers(40, 1000),
)
def test_a_stored_request_is_whole(
    runner: asyncio.Runner,
    seed: int,
    usual: bool,
    length: int,
    share: float,
    trigger: float,
    words: int | None,
    max_input: int | None,
) -> None:
    request = generated(seed, usual=usual)
    options = ContextOptions(strategy="summarize", trigger=trigger, target=trigger * share)
    entry = {"name": "m", "engine": "simulated", "options": {"max_model_len": length}}
    registry = Registry({"m": SimulatedModel.model_validate(entry).model_copy(update={"context": options})})
    contexts = ContextWindow(registry)
    key = KeyOptions(token_limits=TokenLimits(max_input=max_input)) if max_input is not None else KeyOptions()
    principal = replace(Principal.of(OWNER), options=key)
    new = NewJob(OWNER, "m", 3, request)
    summaries = Written(None if words is None else "\n".join(["#0"] + ["text"] * words))

    def stored(text: Summaries | None) -> NewJob:
        steps = Shortening(registry, contexts, text)
        return runner.run(steps.shorten(principal, new, cast(SummaryJobs, object())))

    try:
        windowed = stored(None)
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            stored(summaries)
        return
    result = stored(summaries)
    decision = result.decisions.context
    hypothesis.event("not shortened" if decision is None else decision.strategy)
    if decision is None:
        assert result.request is request
        return
    if decision.strategy != "summarize":
        assert result.request == windowed.request
        assert decision.note is not None
    summary = introduction(summaries.text or "") if decision.strategy == "summarize" else None

    # As it is read from the job's row.
    read = GenerateRequest.model_validate_json(result.request.model_dump_json(exclude_none=True, exclude_defaults=True))
    given, kept = request.messages or [], read.messages or []
    numbers = [number_of(message, summary) for message in kept]
    left = [number for number in numbers if number is not None]
    assert left == sorted(set(left))
    assert left[-1:] == [*range(len(given))][-1:], "the newest message is the last"
    for message, number in zip(kept, numbers, strict=True):
        if number is not None:
            same = message.model_copy(update={"content": given[number].content})
            assert same == Message.model_validate(given[number].model_dump(exclude_none=True))
            assert message.text.removeprefix(summary or "").lstrip("\n") == given[number].text
    assert {n for n, message in enumerate(given) if message.role in INSTRUCTIONS} <= set(left)
    dropped = sorted(set(range(len(given))) - set(left))
    assert len(dropped) == (decision.summarized_messages if summary else decision.dropped_messages)
    _check_links(given, left)
    _check_summary(kept, summary)
    if summary is not None:
        own = given[next(number for number in left if given[number].role not in INSTRUCTIONS)].role != "user"
        hypothesis.event(f"a message of its own: {own}")
        assert numbers.count(None) == own
        before = kept[: next(n for n, message in enumerate(kept) if summary in message.text)]
        assert all(message.role in INSTRUCTIONS for message in before)
        assert len(before) == next(n for n, number in enumerate(left) if given[number].role not in INSTRUCTIONS)
    if summaries.orders:
        assert sorted(int(message.text[1:].split()[0]) for message in summaries.orders[0].messages) == dropped

    expected = [point for point in marked(request, None) if point[0] in set(left)]
    assert marked(read, summary) == expected
    assert sum(point.tool is not None for point in read.cache_breakpoints) == sum(
        point.tool is not None for point in request.cache_breakpoints
    )
    assert [numbers[position] for position in read.tool_errors] == [n for n in request.tool_errors if n in set(left)]
    if _check_size(contexts, principal, windowed, result):
        runner.run(contexts.check("m", result.request))


def _check_links(given: Sequence[Message], left: Sequence[int]) -> None:
    """No call is left without its result, and no result without its call."""
    pairs = links(given, range(len(given)))
    assert all((call in set(left)) == (result in set(left)) for call, result in pairs)
    assert links(given, left) == {pair for pair in pairs if pair[0] in set(left)}


def _check_summary(kept: Sequence[Message], summary: str | None) -> None:
    """The summary begins the first message that is no instruction, which is one of the user's."""
    if summary is None:
        assert not any("End of summary" in message.text for message in kept)
        return
    assert sum(message.text.count(summary) for message in kept) == 1
    first = next(message for message in kept if message.role not in INSTRUCTIONS)
    assert first.role == "user"
    assert first.texts[0].startswith(summary)


def _check_size(contexts: ContextWindow, principal: Principal, windowed: NewJob, result: NewJob) -> bool:
    """A summary never makes a request too long that is accepted without it. Returns whether it is."""
    counts = contexts.message_counts("m")
    after = counts.rest(result.request) + sum(map(counts.message, result.request.messages or ()))
    decision = result.decisions.context
    assert decision is not None
    assert decision.tokens_after is not None
    assert decision.tokens_after == after
    limits = principal.options.token_limits
    before = windowed.decisions.context
    assert before is not None
    most = contexts.length("m") or 0
    if limits is not None and limits.max_input is not None:
        most = min(most, limits.max_input + 1)
    is_accepted = (before.tokens_after or 0) < most
    assert after < most or not is_accepted
    return is_accepted
