"""Answers and requests on the page of a job."""

from __future__ import annotations

import pytest

from api.console.jobs.job.answer import SHOWN, SHOWN_MESSAGES, Text, choices, request_view, text_of, title_of
from shared.domain.job import Choice, Job, JobStatus, ToolCall
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from tests.unit.api.console.data.test_timeline import T0


def job(request: GenerateRequest) -> Job:
    return Job(
        id="job_1", owner=Owner(1, 1), model="m", status=JobStatus.QUEUED, priority=3, created_at=T0, request=request
    )


def conversation(*contents: str) -> GenerateRequest:
    roles = ("system", "user", "assistant")
    return GenerateRequest(
        messages=[Message(role=roles[index % 3], content=content) for index, content in enumerate(contents)]
    )


def test_json_is_formatted_as_it_is_written() -> None:
    shown = text_of(' {"b": 1.50, "a":[1e5,"x, {\\"y\\": [1]} \\u00e9", {}], "n": 12345678901234567890, "e": []}')
    assert shown.is_json
    assert shown.shown == (
        '{\n  "b": 1.50,\n  "a": [\n    1e5,\n    "x, {\\"y\\": [1]} \\u00e9",\n    {}\n  ],\n'
        '  "n": 12345678901234567890,\n  "e": []\n}'
    )


@pytest.mark.parametrize("text", ["", "plain", '"text"', "12", "{no json}", "[1,", "{" * 100_000 + "}" * 100_000])
def test_other_texts_stay_as_they_are(text: str) -> None:
    shown = text_of(text)
    assert not shown.is_json
    assert text.startswith(shown.shown)


def test_long_texts_are_cut() -> None:
    assert text_of("é" * (SHOWN + 1)) == Text("é" * SHOWN, "39 KiB")
    assert text_of("x" * SHOWN).whole_size is None


def test_a_choice_has_its_parts() -> None:
    (view,) = choices([Choice(0, "text", "tool_calls", "because", (ToolCall("c1", "f", '{"x":1}'),))])
    assert view.reasoning == Text("because")
    assert view.calls[0].arguments.shown == '{\n  "x": 1\n}'
    assert view.note == "calls tools"


@pytest.mark.parametrize(
    ("request_", "title"),
    [
        (conversation("You are kind.", "  Name\n three   rivers. "), "Name three rivers."),
        (conversation("You are kind."), "You are kind."),
        (GenerateRequest(prompt="Once upon a time"), "Once upon a time"),
        (GenerateRequest(prompt=[1, 2, 3]), "3 token ids"),
        (GenerateRequest(prompt=""), "Job without text"),
        (GenerateRequest(prompt="word " * 100), "word " * 13 + "word…"),
        (GenerateRequest(prompt="x" * 100), "x" * 72 + "…"),
    ],
)
def test_the_title_is_the_first_words(request_: GenerateRequest, title: str) -> None:
    assert title_of(job(request_)) == title


def test_the_middle_of_a_long_conversation_is_left_out() -> None:
    view = request_view(job(conversation(*(f"message {index}" for index in range(1000)))))
    assert len(view.messages) == SHOWN_MESSAGES
    assert view.more_messages == 1000 - SHOWN_MESSAGES
    assert (view.messages[0].text.shown, view.messages[-1].text.shown) == ("message 0", "message 999")
