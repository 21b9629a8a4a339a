"""Which answers are refusals, and who says so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from api.quality.refusals.examples import LANGUAGES, PATTERNS, TEST, TRAIN, made_answers, read_answers
from api.quality.refusals.fit import measure
from shared.domain.job import Choice, JobStatus, ToolCall
from shared.domain.refusals import MAX_WORDS, RefusalSource, Verdict, classifier, find_refusal, ngrams

REFUSAL = "I'm sorry, but I can't help with that request."
ANSWER = "The capital of Australia is Canberra, not Sydney."
QUALITY = Path(__file__).parents[4] / "docs" / "quality.md"


def verdict(*choices: Choice, status: JobStatus = JobStatus.COMPLETED, kind: str | None = None) -> Verdict | None:
    return find_refusal(status, choices, kind)


def choice(text: str, finish_reason: str = "stop", **others: Any) -> Choice:
    return Choice(0, text, finish_reason, **others)


@pytest.mark.parametrize(
    ("answer", "refused", "source"),
    [
        (choice(REFUSAL), True, RefusalSource.CLASSIFIER),
        (choice(ANSWER), False, RefusalSource.CLASSIFIER),
        (choice("I would rather talk about birds.", refused=True), True, RefusalSource.PROVIDER),
        (choice(ANSWER, "content_filter"), True, RefusalSource.PROVIDER),
        (choice("", "content_filter"), True, RefusalSource.PROVIDER),
        (choice(REFUSAL, "length"), True, RefusalSource.CLASSIFIER),
        (
            choice(REFUSAL, "tool_calls", tool_calls=(ToolCall("1", "search", "{}"),)),
            False,
            RefusalSource.CLASSIFIER,
        ),
    ],
)
def test_the_provider_decides_and_then_the_classifier(answer: Choice, refused: bool, source: RefusalSource) -> None:
    assert verdict(answer) == Verdict(refused, source)


def test_of_several_choices_all_have_to_be_refusals() -> None:
    by_provider = choice("", "content_filter")
    assert verdict(choice(REFUSAL), choice(ANSWER)) == Verdict(False, RefusalSource.CLASSIFIER)
    assert verdict(choice(REFUSAL), choice(REFUSAL)) == Verdict(True, RefusalSource.CLASSIFIER)
    assert verdict(choice(REFUSAL), by_provider) == Verdict(True, RefusalSource.PROVIDER)
    assert verdict(choice(ANSWER), by_provider) == Verdict(False, RefusalSource.CLASSIFIER)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED])
def test_without_an_answer_there_is_no_verdict(status: JobStatus) -> None:
    assert verdict(choice(REFUSAL), status=status) is None
    assert verdict() is None
    assert verdict(choice(" \n")) is None
    assert verdict(choice(REFUSAL), kind="summary") is None


@pytest.mark.parametrize(
    "text",
    [
        "I\u2019m sorry, but I can\u2019t help with that.",
        "i'm SORRY, but I can't help with that.",
        "\n\n  I'm sorry, but I can't help with that.",
    ],
)
def test_spelling_makes_no_difference(text: str) -> None:
    assert verdict(choice(text)) == Verdict(True, RefusalSource.CLASSIFIER)


@pytest.mark.parametrize("text", ['{"a": 1}', "42", "\U0001f600", "def f(): pass", "東京です。", "'" * 1000, "\0"])
def test_texts_without_known_words_are_no_refusals(text: str) -> None:
    assert verdict(choice(text)) == Verdict(False, RefusalSource.CLASSIFIER)


def test_only_the_beginning_is_read() -> None:
    assert len(ngrams("word " * 10_000)) <= 3 * MAX_WORDS
    assert classifier().probability(ANSWER + " x" * 300 + REFUSAL) == classifier().probability(ANSWER + " x" * 300)
    started = time.process_time()
    for _ in range(100):
        classifier().probability("a b" * 1_000_000)
    assert time.process_time() - started < 0.5, "5 ms each, of which most is for nothing"


def test_the_published_numbers_are_those_of_the_shipped_classifier() -> None:
    """Precision and recall, on answers that it was not trained with, are in its file and in the documentation."""
    answers = read_answers(TEST)
    measured = measure(classifier(), answers)
    assert measured == classifier().measured
    page = QUALITY.read_text()
    for one in (measured, *(measured["languages"][language] for language in LANGUAGES)):
        cells = [
            f"{one[name]['rate']:.2f} ({one[name]['low']:.2f} to {one[name]['high']:.2f})"
            for name in ("precision", "recall")
        ]
        assert f"| {one['n']} | {cells[0]} | {cells[1]} |" in page
    made = made_answers(PATTERNS)
    assert f"{len(read_answers(TRAIN)):,} written answers" in " ".join(page.split())
    assert f"{len(made):,} that were made of patterns" in " ".join(page.split())
    assert measured["precision"]["rate"] > 0.8
    assert measured["recall"]["rate"] > 0.9


def test_no_answer_is_both_trained_with_and_measured_on() -> None:
    trained = {answer.text for answer in (*read_answers(TRAIN), *made_answers(PATTERNS))}
    assert not trained & {answer.text for answer in read_answers(TEST)}
    for language in LANGUAGES:
        labels = [answer.refused for answer in read_answers(TEST) if answer.language == language]
        assert 0 < sum(labels) < len(labels)
