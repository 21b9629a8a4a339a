"""The benchmarks' arithmetic, their goals, and how the load generator reads. What they measure is no test."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest

from benchmarks import report
from benchmarks.__main__ import parsed
from benchmarks.bench import Figures, Key
from benchmarks.goals import GOALS, verdicts
from benchmarks.load.connection import Connection, Exchange
from benchmarks.load.plan import ID, NUMBER, Plan, Spread, Summary
from benchmarks.load.requests import Requests
from benchmarks.scenarios import SCENARIOS, console
from benchmarks.statistics import Measured, number, percentile
from shared.config.models.loader import load_registry
from tests.support.stack import write_models

SUBMITS = Key("submits", "headrace", "submits/s at 64")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def figures(*values: float, key: Key = SUBMITS) -> Figures:
    made = Figures()
    for value in values:
        made.add(key, value, "/s")
    return made


class TestStatistics:
    @pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1, 100), (0, 1)])
    def test_nearest_rank(self, share: float, expected: float) -> None:
        assert percentile(range(1, 101), share) == expected

    def test_of_one_value(self) -> None:
        assert percentile([7.0], 0.99) == 7

    def test_median_and_limits(self) -> None:
        measured = Measured((5.0, 1.0, 3.0))
        assert (measured.median, measured.minimum, measured.maximum) == (3, 1, 5)

    @pytest.mark.parametrize(
        ("value", "text"), [(50_000.4, "50,000"), (12.34, "12.3"), (0.974, "0.97"), (-20.04, "-20.0")]
    )
    def test_numbers(self, value: float, text: str) -> None:
        assert number(value) == text


class TestGoals:
    def test_met_and_missed_by_the_median(self) -> None:
        assert [verdict.met for verdict in verdicts(figures(600, 800, 900))] == [True]
        assert [verdict.met for verdict in verdicts(figures(600, 650, 900))] == [False]

    def test_a_ratio_needs_both_sides(self) -> None:
        ours, theirs = (Key("vllm", system, "tokens/s at 16") for system in ("headrace", "vllm"))
        made = figures(111, key=ours)
        assert verdicts(made) == []
        made.add(theirs, 100, "/s")
        (verdict,) = verdicts(made)
        assert (verdict.value, verdict.met) == (1.11, True)

    def test_a_limit_from_above(self) -> None:
        (verdict,) = verdicts(figures(61, key=Key("followers", "headrace", "memory per follower")))
        assert not verdict.met
        assert verdict.target == "≤ 60.0 KB"

    def test_each_is_about_a_scenario(self) -> None:
        assert {goal.key.scenario for goal in GOALS} == set(SCENARIOS)


class TestReport:
    def test_what_stands_around_the_markers_stays(self, tmp_path: Path) -> None:
        document = tmp_path / "benchmarks.md"
        document.write_text(f"# Before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        report.write(document, report.sections(figures(700), {"cores": "2"}, "python -m benchmarks"), ["submits"])
        text = document.read_text()
        assert text.startswith(f"# Before\n{report.BEGIN}\n")
        assert text.endswith(f"{report.END}\nafter\n")
        assert "old" not in text
        assert "| submits/s at 64 | headrace | 700 /s |" in text
        assert "| durable submits | ≥ 700 /s | 700 /s | met |" in text

    def test_a_document_without_markers_is_left_alone(self, tmp_path: Path) -> None:
        document = tmp_path / "benchmarks.md"
        document.write_text("mine")
        with pytest.raises(ValueError, match="no markers"):
            report.write(document, {"relay": "new"}, ["relay"])
        assert document.read_text() == "mine"

    def test_sections_of_other_scenarios_stay_and_all_are_in_order(self, tmp_path: Path) -> None:
        document = tmp_path / "benchmarks.md"
        for made in ({"c": "one"}, {"a": "two\n\nthree"}, {"b": "four"}, {"c": "five"}):
            report.write(document, made, ["a", "b", "c"])
        measured = document.read_text().partition(report.BEGIN)[2].partition(report.END)[0]
        assert measured == "\n\n### a\n\ntwo\n\nthree\n\n### b\n\nfour\n\n### c\n\nfive\n\n"


class TestCommandLine:
    def test_scenarios_may_be_chosen(self) -> None:
        chosen = parsed(["--only", "relay", "--only", "submits", "--quick", "--device", "cuda", "--model", "folder"])
        assert (chosen.only, chosen.quick, chosen.device, chosen.model) == (
            ["relay", "submits"],
            True,
            "cuda",
            Path("folder"),
        )

    def test_an_unknown_scenario_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parsed(["--only", "nothing"])
        assert "invalid choice" in capsys.readouterr().err


class TestPlan:
    def test_plan_and_summary_travel(self) -> None:
        plan = Plan(port=1, path="/", body={"model": "m"}, ids=["a"])
        assert Plan.load(plan.dump()) == plan
        summary = Summary(2, 0, "", 4.0, 8, Spread(2, 1, 2, 3, 4), Spread(), Spread())
        assert Summary.load(summary.dump()) == summary
        assert (summary.per_second, summary.tokens_per_second) == (0.5, 2)

    def test_requests_are_numbered_at_the_same_length(self) -> None:
        requests = Requests(Plan(port=1, path="/v1/jobs", body={"prompt": f"{NUMBER}: go"}))
        first, second = requests.next(), requests.next()
        assert first.endswith(b'{"prompt":"00000000: go"}')
        assert second.endswith(b'{"prompt":"00000001: go"}')
        assert b"Content-Length: 25\r\n" in second

    def test_paths_take_turns(self) -> None:
        requests = Requests(Plan(port=1, path=f"/v1/jobs/{ID}", method="GET", ids=["a", "b"]))
        paths = [requests.next().split()[1] for _ in range(3)]
        assert paths == [b"/v1/jobs/a", b"/v1/jobs/b", b"/v1/jobs/a"]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream() -> bytes:
    """An answer as vLLM's server sends it: a first chunk without text, text, usage, the end."""
    return HEAD + b"".join(
        chunk(b"data: %s\n\n" % data)
        for data in (
            b'{"choices":[{"delta":{"role":"assistant","content":""}}]}',
            b'{"choices":[{"delta":{"content":"two tokens"}}]}',
            b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}',
            b"[DONE]",
        )
    )


class TestConnection:
    @pytest.fixture
    def done(self) -> list[Exchange]:
        return []

    @pytest.fixture
    def connection(self, done: list[Exchange]) -> Connection:
        connection = Connection(lambda _, exchange: done.append(exchange), array("d"))
        connection.connection_made(cast(asyncio.Transport, Mock()))
        return connection

    @pytest.mark.parametrize("size", [1, 7, 10_000])
    def test_a_stream_in_pieces(self, connection: Connection, done: list[Exchange], size: int) -> None:
        whole = stream() + b"0\r\n\r\n"
        for _ in range(2):  # and again on the same connection
            connection.send(b"")
            for at in range(0, len(whole), size):
                assert len(done) == _
                connection.data_received(whole[at : at + size])
            exchange = done[-1]
            assert (exchange.status, exchange.tokens, exchange.failure) == (200, 2, "")
            assert exchange.due <= exchange.first <= exchange.last
            assert exchange.first > 0

    def test_a_chunk_without_text_is_no_first_token(self, connection: Connection) -> None:
        connection.send(b"")
        connection.data_received(HEAD + chunk(b'data: {"choices":[{"delta":{"content":""}}]}\n\n'))
        exchange = connection._exchange
        assert exchange is not None
        assert exchange.first == 0

    def test_an_error_in_a_stream_is_a_failure(self, connection: Connection, done: list[Exchange]) -> None:
        connection.send(b"")
        connection.data_received(HEAD + chunk(b'data: {"error":{"message":"no"}}\n\n') + b"0\r\n\r\n")
        assert "no" in done[0].failure

    def test_a_whole_answer(self, connection: Connection, done: list[Exchange]) -> None:
        body = b'{"usage":{"completion_tokens":5}}'
        connection.send(b"")
        connection.data_received(b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body[:4]))
        connection.data_received(body[4:])
        assert (done[0].status, done[0].body, done[0].tokens) == (202, body, 5)

    def test_a_refusal_is_a_failure(self, connection: Connection, done: list[Exchange]) -> None:
        connection.send(b"")
        connection.data_received(b"HTTP/1.1 503 Away\r\nContent-Length: 4\r\n\r\naway")
        assert done[0].failure == "503 away"

    def test_a_broken_connection_is_a_failure(self, connection: Connection, done: list[Exchange]) -> None:
        connection.send(b"")
        connection.data_received(stream())
        connection.connection_lost(None)
        assert "broke" in done[0].failure


def test_the_models_of_the_console_are_valid(tmp_path: Path) -> None:
    registry = load_registry(write_models(tmp_path / "models.yaml", console.MODELS, console.ROUTES))
    assert {"large", "small"} <= registry.models.keys()
    assert "auto" in {route.name for route in registry.routes}
