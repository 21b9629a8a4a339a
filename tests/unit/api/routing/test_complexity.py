"""The shipped score: simple requests go to the first level, demanding ones to the last."""

from __future__ import annotations

import pytest

from api.routing.complexity import Heuristic, Mode, indicators, level
from api.routing.request_text import TASK_CHARACTERS, RequestText
from shared.domain.content import TextPart
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Sampling, Tool

HEURISTIC = Heuristic()
SMALL, MIDDLE, LARGE = 0, 1, 2


def chat(*texts: str, **options: object) -> GenerateRequest:
    """A conversation whose messages alternate between user and assistant."""
    roles = ("user", "assistant")
    messages = [Message(role=roles[at % 2], content=text) for at, text in enumerate(texts)]
    return GenerateRequest.model_validate({"messages": messages, **options})


def chosen(request: GenerateRequest, mode: Mode = Mode.BALANCED, levels: int = 3) -> int:
    return level(HEURISTIC, HEURISTIC.score(request), mode, levels)


SIMPLE = [
    "Hi",
    "Thanks!",
    "What is the capital of France?",
    "Which planet has the most plants?",
    "Translate 'good morning' into German.",
    "Convert 5 miles to kilometres.",
    "What is an algorithm?",
    "Is this review positive or negative: great phone",
    "Wie hoch ist der Eiffelturm?",
    "¿Cuál es la capital de Perú?",
    "法国的首都是哪里?",
    "日本で一番高い山は何ですか?",
    "Какая столица Франции?",
    "ما هي عاصمة فرنسا؟",
    "भारत की राजधानी क्या है?",
    "Qual è la capitale d'Italia?",
]
NOT_SIMPLE = [
    "Summarize this article: the council met on Monday.",
    "summarise the meeting",
    "Explain how TCP congestion control works.",
    "Fasse den Text zusammen: Der Rat tagte am Montag.",
    "Erkläre, wie ein Kühlschrank funktioniert.",
    "Résume cet article en trois phrases.",
    "Resume este artículo.",
    "总结这篇文章",
    "この記事を要約してください",
    "이 글을 요약해 주세요",
    "Объясни, как работает холодильник.",
    "لخص هذا المقال",
    "इस लेख का सारांश लिखिए",
]
COMPLEX = [
    "Prove that the square root of 2 is irrational.",
    "Analyse the causes of the First World War.",
    "Write a Python function that merges two sorted lists.",
    "Implement an LRU cache class in Java.",
    "Solve this step by step: a train leaves at noon at 80 km/h, another at 13:00 at 100 km/h. When do they meet?",
    "Debug this: my loop never ends",
    "Schreibe eine Funktion, die Primzahlen findet.",
    "Beweise, dass es unendlich viele Primzahlen gibt.",
    "Écris une fonction qui trie une liste.",
    "Demuestra paso a paso que la suma es par.",
    "写一个排序算法",
    "请证明根号2是无理数",
    "请用python实现链表",
    "请debug这个问题",
    "ソート関数のコードを書いてください",
    "정렬 함수를 작성해 주세요",
    "Напиши функцию на Python, которая сортирует список.",
    "اكتب دالة لترتيب قائمة",
]


@pytest.mark.parametrize("text", SIMPLE)
def test_a_short_question_goes_to_the_first_level(text: str) -> None:
    assert chosen(chat(text)) == SMALL
    assert chosen(chat(text), levels=2) == 0
    assert chosen(GenerateRequest(prompt=text)) == SMALL


@pytest.mark.parametrize("text", NOT_SIMPLE)
def test_a_summary_or_an_explanation_does_not_go_to_the_first_level(text: str) -> None:
    assert chosen(chat(text)) == MIDDLE
    assert chosen(chat(text), levels=2) == 1


@pytest.mark.parametrize("text", COMPLEX)
def test_a_demanding_task_goes_to_the_last_level(text: str) -> None:
    assert chosen(chat(text)) == LARGE
    assert chosen(chat(text), levels=2) == 1


@pytest.mark.parametrize(
    "sentence", ["The cat sat on the mat. ", "Кошка сидела на ковре. ", "猫坐在垫子上。", "Η γάτα κάθισε στο χαλί. "]
)
def test_longer_tasks_are_more_complex_in_any_language(sentence: str) -> None:
    scores = [HEURISTIC.score(chat(sentence * repeats)) for repeats in (1, 30, 300, 3000)]
    assert scores == sorted(set(scores))
    assert chosen(chat(sentence)) == SMALL
    assert chosen(chat(sentence * 30)) == MIDDLE
    assert chosen(chat(sentence * 3000)) == LARGE


def test_what_the_user_asks_for_last_is_the_task() -> None:
    assert chosen(chat("Prove Fermat's last theorem.", "I cannot.", "Thanks!")) == SMALL
    assert chosen(chat("Hi", "Hello!", "Prove Fermat's last theorem.")) == LARGE


def test_the_task_is_found_at_both_ends_of_a_long_message() -> None:
    text = "lorem ipsum " * 2000
    plain = HEURISTIC.score(chat(text))
    assert HEURISTIC.score(chat(f"Analyse this step by step: {text}")) > plain
    assert HEURISTIC.score(chat(f"{text} Analyse this step by step.")) > plain


def test_a_long_history_is_more_complex_than_none() -> None:
    history = ["What is this?", "It is a long answer. " * 400] * 5
    assert HEURISTIC.score(chat(*history, "And that?")) > HEURISTIC.score(chat("And that?"))


def test_options_of_the_request_count() -> None:
    plain = HEURISTIC.score(chat("Which of these two is better? " * 8))
    text = "Which of these two is better? " * 8
    tool = Tool(function=Function(name="search"))
    for harder in (
        chat(text, chat=ChatOptions(reasoning_effort="high")),
        chat(text, chat=ChatOptions(tools=[tool])),
        chat(text, sampling=Sampling(max_tokens=8000)),
        chat(text, sampling=Sampling(thinking_token_budget=1000)),
        chat(text, structured_outputs={"json_schema": {"type": "object"}}),
    ):
        assert HEURISTIC.score(harder) > plain
    assert HEURISTIC.score(chat(text, sampling=Sampling(max_tokens=8))) < plain
    assert HEURISTIC.score(chat(text, chat=ChatOptions(reasoning_effort="minimal"))) < plain


def test_code_lists_and_formulas_count() -> None:
    plain = HEURISTIC.score(chat("What does this say? one two three four five six seven"))
    for text in (
        "What does this say?\n```\nx = 1\n```",
        "What does this say?\n- one\n- two\n- three\n- four",
        r"What does this say? \int_0^1 x dx",
    ):
        assert HEURISTIC.score(chat(text)) > plain


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("levels", range(1, 7))
def test_thresholds_ascend_and_separate_the_levels(mode: Mode, levels: int) -> None:
    cuts = HEURISTIC.thresholds(mode, levels)
    assert len(cuts) == levels - 1
    assert list(cuts) == sorted(set(cuts))
    assert all(0 < cut < 1 for cut in cuts)
    assert level(HEURISTIC, 0, mode, levels) == 0
    assert level(HEURISTIC, 1, mode, levels) == levels - 1


def test_modes_prefer_cheaper_or_better_models() -> None:
    for text in (*SIMPLE, *NOT_SIMPLE, *COMPLEX):
        cost, balanced, quality = (chosen(chat(text), mode) for mode in (Mode.COST, Mode.BALANCED, Mode.QUALITY))
        assert cost <= balanced <= quality
    assert chosen(chat("Summarize this article."), Mode.COST) == SMALL
    assert chosen(chat("Summarize this article."), Mode.QUALITY) == LARGE


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt=""),
        GenerateRequest(prompt=[]),
        GenerateRequest(prompt=[1] * 100_000),
        GenerateRequest(messages=[]),
        GenerateRequest(messages=[Message(role="system", content="Be kind.")]),
        GenerateRequest(messages=[Message(role="user", content="")]),
        GenerateRequest(messages=[Message(role="user", content=[TextPart(type="text", text="a")] * 10_000)]),
        GenerateRequest(prompt="\ud83d" * 10_000),
        chat("\n" * 100_000),
        chat("́" * 100_000),
        chat("ﷺ" * 100_000),
        chat("```" * 100_000),
        chat("$$" * 100_000),
    ],
    ids=range(13),
)
def test_any_request_has_a_score(request_: GenerateRequest) -> None:
    assert 0 <= HEURISTIC.score(request_) <= 1


def test_the_text_that_is_read_is_bounded() -> None:
    part = TextPart(type="text", text="word " * 1000)
    for request in (
        chat("word " * 1_000_000),
        GenerateRequest(messages=[Message(role="user", content=[part] * 1000)]),
        GenerateRequest(prompt="word " * 1_000_000),
    ):
        assert len(RequestText.of(request).task) <= TASK_CHARACTERS
    assert len(indicators(chat("x" * 3))) == len(indicators(GenerateRequest(prompt=[1])))
