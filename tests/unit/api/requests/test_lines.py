"""Lines of exports: OpenAI's chat shape, what redaction replaces, and how a complete file is recognized."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest

from api.request_log.bodies import Body
from api.requests import lines as lines_module
from api.requests.chat import chat_messages, chat_tools, with_answer
from api.requests.lines import JsonLines, ParquetLines, export_line
from api.requests.store import Feedback, LoggedRequest, Score
from shared.domain.log_level import LogLevel

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
HALF = "half a pair: \ud83d"


class Censor:
    """Replaces a word in all strings."""

    def redact_body(self, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        return orjson.loads(orjson.dumps(body).replace(b"secret", b"[X]")), {}


def row(**columns: Any) -> LoggedRequest:
    values: dict[str, Any] = dict.fromkeys(LoggedRequest.__dataclass_fields__)
    values |= {
        "job_id": "job_1", "ended_at": AT, "created_at": AT, "project_id": 1, "project": "shop", "key_id": 1,
        "model": "m", "requested_model": "auto", "status": "completed", "answered": False, "level": "full",
        "body": "kept", "feedback": (), "scores": (),
    }  # fmt: skip
    return LoggedRequest(**{**values, **columns})


def body(request: dict[str, Any], output: list[dict[str, Any]] | None = None, level: str = "full") -> Body:
    found = [{"index": 0, "text": "The Rhine.", "finish_reason": "stop"}] if output is None else output
    return Body("job_1", AT, LogLevel(level), request, found)


def asking(content: Any = "Name a river.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def test_a_line_is_a_conversation_that_ends_with_the_answer() -> None:
    line = export_line(
        row(feedback=[Feedback("rating", True)], scores=[Score("help", 4.0, "j")]), body(asking()), None, "e"
    )
    assert line is not None
    assert line["messages"] == [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine."},
    ]
    assert line["model"] == "m"
    metadata = line["metadata"]
    assert metadata["job_id"] == "job_1"
    assert (metadata["route"], metadata["status"], metadata["finish_reason"]) == ("auto", "completed", "stop")
    assert metadata["feedback"] == [{"metric": "rating", "value": True, "tags": []}]
    assert metadata["scores"] == [{"rubric": "help", "score": 4.0, "judge_model": "j"}]
    assert metadata["headrace"] == {"export": "e", "redaction_level": "full"}


def test_tool_calls_and_parts() -> None:
    request: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image", "media_type": "image/png", "data": "aGk=", "detail": "low"},
                {"type": "file", "file_id": "f", "filename": "a.pdf"},
            ]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}],
             "opaque": ["x"], "reasoning": "r"},
            {"role": "tool", "content": "42", "tool_call_id": "c"},
        ],
        "chat": {"tools": [{"function": {"name": "f"}}]},
    }  # fmt: skip
    messages = chat_messages(request)
    assert messages is not None
    assert messages[0]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
        {"type": "file", "file": {"file_id": "f", "filename": "a.pdf"}},
    ]
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": request["messages"][1]["tool_calls"]}
    assert messages[2] == {"role": "tool", "content": "42", "tool_call_id": "c"}
    assert chat_tools(request) == [{"type": "function", "function": {"name": "f"}}]
    output = [{"text": "", "tool_calls": [{"id": "d", "name": "f", "arguments": "{}"}]}]
    assert with_answer([], {}, output) == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "d", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        }
    ]


def test_prompts_failures_and_continued_messages() -> None:
    assert chat_messages({"prompt": "Once"}) == [{"role": "user", "content": "Once"}]
    assert chat_messages({"prompt": [1, 2]}) is None
    assert export_line(row(), body({"prompt": [1, 2]}), None, "e") is None
    failed = export_line(row(status="failed"), body(asking(), output=[]), None, "e")
    assert failed is not None
    assert [message["role"] for message in failed["messages"]] == ["user"]
    begun = {"messages": [{"role": "assistant", "content": "The "}], "chat": {"continue_final_message": True}}
    assert with_answer(chat_messages(begun) or [], begun, [{"text": "Rhine."}]) == [
        {"role": "assistant", "content": "The Rhine."}
    ]


def test_what_is_kept_in_full_is_redacted() -> None:
    logged = row(end_user="secret user", conversation="secret", feedback=[Feedback("note", "secret", ["secret"])])
    output = [{"text": "secret", "finish_reason": "stop"}]
    kept = body(asking("my secret"), output)
    line = export_line(logged, kept, Censor(), "e")
    assert line is not None
    assert b"secret" not in orjson.dumps(line)
    assert line["messages"][-1]["content"] == "[X]"
    assert line["metadata"]["user"] == "[X] user"
    assert line["metadata"]["headrace"]["redaction_level"] == "redacted"
    full = export_line(logged, body(asking("my secret"), output), None, "e")
    assert full is not None
    assert full["messages"][0]["content"] == "my secret"


def test_what_is_kept_redacted_remains_so() -> None:
    line = export_line(row(level="redacted"), body(asking("[EMAIL]"), level="redacted"), None, "e")
    assert line is not None
    assert line["metadata"]["headrace"]["redaction_level"] == "redacted"


def lines(count: int) -> list[dict[str, Any]]:
    found = [export_line(row(job_id=f"job_{number}"), body(asking(f"{number}")), None, "e") for number in range(count)]
    return [line for line in found if line is not None]


@pytest.mark.parametrize("portions", [[3], [1, 2], [1, 1, 1], [0, 3, 0]])
def test_only_the_last_line_has_the_number_of_lines(portions: list[int]) -> None:
    writer, rest = JsonLines(), lines(3)
    parts = []
    for count in portions:
        parts.append(writer.add(rest[:count]))
        rest = rest[count:]
    written = [orjson.loads(line) for line in (b"".join(parts) + writer.end(3)).splitlines()]
    assert [line["metadata"]["job_id"] for line in written] == ["job_0", "job_1", "job_2"]
    assert [line["metadata"]["headrace"].get("rows") for line in written] == [None, None, 3]
    assert all(b'"rows"' not in part for part in parts)


def test_no_lines_are_an_empty_file() -> None:
    writer = JsonLines()
    assert writer.add([]) + writer.end(0) == b""


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    for writer in (JsonLines(), ParquetLines("e", LogLevel.FULL)):
        line = export_line(row(), body(asking(HALF)), None, "e")
        assert line is not None
        assert b"half a pair: ?" in writer.add([line]) + writer.end(1)


@pytest.mark.parametrize("limit", ["GROUP_ROWS", "GROUP_CHARACTERS"])
def test_groups_of_parquet_are_large(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """However few rows are added at a time: readers refuse a file with too many groups."""
    monkeypatch.setattr(lines_module, limit, {"GROUP_ROWS": 100, "GROUP_CHARACTERS": 100 * len("0The Rhine.")}[limit])
    writer = ParquetLines("e", LogLevel.FULL)
    parts = [writer.add(lines(7)) for _ in range(50)]
    file = b"".join(parts) + writer.end(350)
    assert len([part for part in parts if part]) == 4, "the beginning, and three groups"
    found = pyarrow.parquet.ParquetFile(io.BytesIO(file))
    assert [found.metadata.row_group(number).num_rows for number in range(found.num_row_groups)] == [105, 105, 105, 35]
    assert found.metadata.num_rows == 350


def test_parquet_is_read_back() -> None:
    writer = ParquetLines("export_7", LogLevel.REDACTED)
    content = [{"type": "text", "text": "look"}, {"type": "image", "url": "http://x/y.png"}]
    special = export_line(
        row(feedback=[Feedback("rating", False, ["a"])], scores=[Score("help", 4.5, "j")], refused=True),
        body(asking(content), [{"text": "", "tool_calls": [{"id": "d", "name": "f", "arguments": "{}"}]}]),
        None,
        "export_7",
    )
    assert special is not None
    first = writer.add(lines(2))
    assert first.startswith(b"PAR1")
    file = first + writer.add([]) + writer.add([special])
    with pytest.raises(pyarrow.ArrowInvalid):
        pyarrow.parquet.read_table(io.BytesIO(file))
    file += writer.end(3)
    table = pyarrow.parquet.read_table(io.BytesIO(file))
    assert table.schema.metadata[b"headrace.redaction_level"] == b"redacted"
    assert table.schema.metadata[b"headrace.export"] == b"export_7"
    plain, _, found = table.to_pylist()
    assert [(message["role"], message["content"]) for message in plain["messages"]] == [
        ("user", "0"), ("assistant", "The Rhine."),
    ]  # fmt: skip
    assert (plain["created_at"], plain["model"], plain["route"]) == (AT, "m", "auto")
    asked, answer = found["messages"]
    assert (asked["content"], orjson.loads(asked["parts"])[1]["type"]) == ("look", "image_url")
    assert orjson.loads(answer["tool_calls"])[0]["id"] == "d"
    assert found["feedback"] == [{"metric": "rating", "value": "false", "tags": ["a"]}]
    assert found["scores"] == [{"rubric": "help", "score": 4.5, "judge_model": "j"}]
    assert (found["refused"], found["redaction_level"]) == (True, "full")
