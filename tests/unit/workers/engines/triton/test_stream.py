"""Triton's event stream becomes deltas, by the conventions of each backend."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from shared.config.models.triton import CONVENTIONS, Backend
from shared.domain.events import Delta, merge_deltas
from shared.domain.job import Usage
from workers.engines.base import UpstreamError
from workers.engines.triton.event_texts import EventTexts
from workers.engines.triton.output_counter import OutputCounter
from workers.engines.triton.stop_strings import StopStrings
from workers.engines.triton.stream import PIECE, StreamParser
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.usage import MAX_COUNT


def parser(backend: Backend, **options: Any) -> StreamParser:
    texts = EventTexts(cumulative=CONVENTIONS[backend].cumulative)
    return StreamParser(CONVENTIONS[backend], "text_output", texts, **options)


def events(*values: dict[str, Any]) -> bytes:
    return b"".join(
        b"data: %b\n\n" % orjson.dumps({"model_name": "m", "model_version": "1", **value}) for value in values
    )


def texts(*pieces: str) -> bytes:
    return events(*({"text_output": piece} for piece in pieces))


def read(parser: StreamParser, *reads: bytes) -> Delta:
    deltas = [delta for data in reads for delta in parser.feed(data)]
    return merge_deltas([*deltas, *parser.end()])


def test_the_answer_ends_with_the_body() -> None:
    stream = parser("python")
    delta = read(stream, texts("a ", "b"), texts(" c"))
    assert (delta.text, delta.finish_reason, delta.tokens) == ("a b c", "stop", 3)
    assert stream.done
    assert stream.failure is None
    assert stream.usage is None
    assert list(stream.end()) == []


class Words(OutputCounter):
    """A counter of words that notes how much was counted in each step."""

    def __init__(self) -> None:
        self.words = self.characters = 0

    def add(self, text: str) -> None:
        self.words += len(text.split())
        self.characters += len(text)

    @property
    def total(self) -> int:
        return self.words


@pytest.mark.parametrize("backend", ["python", "llmapi"])
def test_a_whole_answer_in_one_event_is_counted_in_short_steps(backend: Backend) -> None:
    """Whatever an event has, one step counts so little that the event loop is not delayed."""
    text = "river " * 40_000
    words = Words()
    stream = parser(backend, counter=words, max_tokens=40_000)
    deltas, steps = [], []
    data = events({"text_output": text})
    for part in stream.feed(data), stream.end():
        for delta in part:
            deltas.append(delta)
            steps.append(words.characters)
            words.characters = 0
    assert max(steps) <= PIECE
    assert max(len(delta.text) for delta in deltas) <= PIECE
    delta = merge_deltas(deltas)
    assert (delta.text, delta.tokens, delta.finish_reason) == (text, 1, "length")
    assert stream.usage is not None
    assert words.total >= 40_000


def test_an_answer_of_max_tokens_was_cut() -> None:
    assert read(parser("python", max_tokens=2), texts("a", "b")).finish_reason == "length"
    assert read(parser("python", max_tokens=3), texts("a", "b")).finish_reason == "stop"


def test_an_empty_answer_is_an_answer_and_an_empty_body_is_none() -> None:
    assert read(parser("python"), texts("")).finish_reason == "stop"
    stream = parser("python")
    assert list(stream.end()) == []
    assert not stream.finished


def test_vllm_reports_the_finish_reason_and_the_numbers_of_tokens() -> None:
    stream = parser("vllm", max_tokens=1)
    first = {"text_output": "a b", "finish_reason": "None", "num_input_tokens": 5, "num_output_tokens": 2}
    last = first | {"text_output": "", "finish_reason": "stop", "num_output_tokens": 1}
    delta = read(stream, events(first), events(last))
    assert (delta.text, delta.finish_reason, delta.tokens) == ("a b", "stop", 3)
    assert stream.usage == Usage(5, 0, 3)
    assert stream.done


def test_a_body_that_ends_before_the_finish_reason_is_no_answer() -> None:
    stream = parser("vllm")
    assert read(stream, events({"text_output": "a", "finish_reason": "None"})).finish_reason is None
    assert not stream.finished
    assert read(parser("vllm"), texts("a")).finish_reason == "stop", "an older backend reports none"


def test_the_llm_api_repeats_the_text_and_names_the_stop_string() -> None:
    stream = parser("llmapi")
    delta = read(
        stream,
        events({"text_output": "a", "finish_reason": "None", "stop_reason": "None"}),
        events({"text_output": "a b", "finish_reason": "stop", "stop_reason": "END"}),
    )
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("a b", "stop", "END")


@pytest.mark.parametrize("reason", ["abort", "timeout", "cancelled", 7])
def test_any_other_finish_reason_is_a_failure(reason: Any) -> None:
    stream = parser("vllm")
    read(stream, events({"text_output": "a", "finish_reason": reason}))
    assert isinstance(stream.failure, ErrorBody)
    assert str(reason) in stream.failure.message


def test_a_stop_string_ends_the_answer() -> None:
    stream = parser("tensorrtllm", stops=StopStrings(["END"]))
    delta = read(stream, texts("a E", "ND b"))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("a ", "stop", "END")
    assert stream.done
    assert stream.is_cut
    stream = parser("tensorrtllm", stops=StopStrings(["END"]))
    assert read(stream, texts("a E")).text == "a E"
    assert not stream.is_cut


@pytest.mark.parametrize(
    ("message", "status"),
    [("boom", None), ("Stub process 'm_0_0' is not healthy.", 503), ("Model is unavailable due to X", 503)],
)
def test_errors_in_the_stream(message: str, status: int | None) -> None:
    stream = parser("python")
    delta = read(stream, texts("a") + b"data: %b\n\n" % orjson.dumps({"error": message}))
    assert (delta.text, delta.finish_reason) == ("a", None)
    assert stream.failure == ErrorBody(message, None, status)


def test_of_several_sequences_the_first_counts() -> None:
    assert read(parser("python"), events({"text_output": ["a", "b"]}, {}, {"text_output": []})).text == "a"


def test_bytes_that_a_model_cuts_inside_a_character_are_joined() -> None:
    wave = "ü🌊".encode()
    reads = [b'data: {"text_output":"%b"}\n\n' % wave[at : at + 1] for at in range(len(wave))]
    assert read(parser("python"), *reads).text == "ü🌊"
    assert read(parser("python"), b"".join(reads)).text == "ü🌊"


def test_an_output_of_another_name_is_named_in_the_error() -> None:
    stream = parser("python")
    list(stream.feed(events({"answer": "a"})))
    list(stream.end())
    assert isinstance(stream.failure, UpstreamError)
    assert "`text_output`" in str(stream.failure)


@pytest.mark.parametrize("body", [b"data: 7\n\n", b"data: [1]\n\n", b'data: {"text_output": 7}\n\n', b"data: {\n\n"])
def test_what_is_no_stream_is_a_failure(body: bytes) -> None:
    stream = parser("python")
    list(stream.feed(body))
    list(stream.end())
    assert isinstance(stream.failure, UpstreamError)


@pytest.mark.parametrize("count", [-1, True, "3", 1 << 40, None, [], 1.5])
def test_numbers_that_are_none_do_not_count(count: Any) -> None:
    stream = parser("vllm")
    read(stream, events({"text_output": "a", "num_input_tokens": count, "num_output_tokens": count}))
    assert stream.usage is None


def test_the_sum_of_the_counts_of_all_events_is_bounded() -> None:
    stream = parser("vllm")
    counts = [{"text_output": "a", "num_output_tokens": count} for count in (MAX_COUNT, 1)]
    read(stream, events(*counts))
    assert stream.usage == Usage(0, 0, MAX_COUNT)


def test_the_end_that_proxies_add_is_skipped() -> None:
    assert read(parser("python"), texts("a"), b"data: [DONE]\n\n").finish_reason == "stop"
    assert read(parser("python"), b'{"model_name":"m","text_output":"a"}').text == "a", "a whole answer as JSON"
