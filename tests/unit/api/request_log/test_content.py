"""What the request log keeps of a job's content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from api.request_log.content import JobContent, body_text
from api.request_log.redaction import new_redactor
from shared.domain.content import ImagePart, TextPart
from shared.domain.log_level import LogLevel
from shared.domain.request import FunctionCall, GenerateRequest, Message, MessageToolCall, Sampling

SECRET = "4242"


class Stars:
    """Replaces a secret in all strings."""

    def redact_body(self, body: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, int]]:
        text = orjson.dumps(body)
        return orjson.loads(text.replace(SECRET.encode(), b"[CARD]")), {"card": text.count(SECRET.encode())}


def content(request: GenerateRequest, *output: dict[str, Any], **changes: Any) -> JobContent:
    text = request.model_dump_json(exclude_none=True, exclude_defaults=True)
    values = {"output": orjson.dumps(output).decode(), "metadata": "{}", "error_message": None, **changes}
    return JobContent(text, **values)


def kept(what: JobContent, level: LogLevel = LogLevel.REDACTED) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(body_text(what, level, Stars()).text)
    return body


CHAT = GenerateRequest(
    messages=[Message(role="user", content=f"my card is {SECRET}")], sampling=Sampling(temperature=0)
)
ANSWER = {"index": 0, "text": f"{SECRET}, thanks", "finish_reason": "stop"}


def test_a_full_body_is_as_it_is() -> None:
    what = content(CHAT, {**ANSWER, "logprobs": [[1, -0.5]]}, metadata='{"ticket":"7"}', error_message="it failed")
    assert kept(what, LogLevel.FULL) == {
        "request": {
            "messages": [{"role": "user", "content": f"my card is {SECRET}"}],
            "sampling": {"temperature": 0.0},
        },
        "output": [{**ANSWER, "logprobs": [[1, -0.5]]}],
        "metadata": {"ticket": "7"},
        "error_message": "it failed",
    }
    assert GenerateRequest.model_validate(kept(what, LogLevel.FULL)["request"]) == CHAT


def test_a_redacted_body_has_counts() -> None:
    what = content(CHAT, ANSWER, metadata=f'{{"note":"{SECRET}"}}', error_message=f"cannot {SECRET}")
    found = body_text(what, LogLevel.REDACTED, Stars())
    assert SECRET.encode() not in found.text
    assert found.redactions == 4
    assert orjson.loads(found.text)["redactions"] == {"card": 4}
    assert GenerateRequest.model_validate(kept(what)["request"]).messages is not None


def test_personal_data_is_nowhere_in_a_redacted_body() -> None:
    """Neither in log probabilities, which have the answer in pieces, nor as token ids, nor in arguments of tools."""
    card = "4111111111111111"
    parts = [TextPart(type="text", text=card), ImagePart(type="image", media_type="image/png", data="QUJD" * 100)]
    call = MessageToolCall(id="call_1", function=FunctionCall(name="pay", arguments=f'{{"card":"{card}"}}'))
    request = GenerateRequest(
        messages=[Message(role="user", content=parts), Message(role="assistant", tool_calls=[call])],
        sampling=Sampling(stop=[card]),
    )
    output = {"index": 0, "text": card, "logprobs": [["4111", -1], ["111111111111", -1]], "reasoning": card}
    what = content(request, output, metadata=f'{{"note":"{card}"}}', error_message=f"cannot {card}")
    found = body_text(what, LogLevel.REDACTED, new_redactor(None))
    assert b"4111" not in found.text
    assert b"QUJD" not in found.text
    assert found.redactions == orjson.loads(found.text)["redactions"]["card"] == 7
    ids = body_text(content(GenerateRequest(prompt=[41, 11])), LogLevel.REDACTED, new_redactor(None))
    assert orjson.loads(ids.text)["request"]["prompt"] == "[TOKENS 2]"
    assert kept(content(GenerateRequest(prompt=[41, 11])), LogLevel.FULL)["request"]["prompt"] == [41, 11]


def test_the_rules_of_a_project_apply() -> None:
    own = new_redactor({"kinds": [], "own": [{"name": "codename", "words": ["Falcon"]}]})
    body = orjson.loads(body_text(content(GenerateRequest(prompt="of Falcon")), LogLevel.REDACTED, own).text)
    assert body["request"]["prompt"] == "of [CODENAME]"
    with pytest.raises(ValueError, match="kinds"):
        new_redactor({"kinds": ["of a newer version"]})


def test_a_large_body_is_the_same() -> None:
    request = GenerateRequest(messages=[Message(role="user", content=f"{SECRET} " * 20_000)])
    body = kept(content(request, ANSWER))
    assert body["request"]["messages"][0]["content"] == "[CARD] " * 20_000
    assert kept(content(request), LogLevel.FULL)["request"]["messages"][0]["content"] == f"{SECRET} " * 20_000


def test_a_job_without_output_has_a_body() -> None:
    assert kept(content(CHAT, output=None))["output"] == []


@pytest.mark.parametrize("level", [LogLevel.REDACTED, LogLevel.METADATA, LogLevel.NONE])
def test_nothing_is_kept_without_a_redactor(level: LogLevel) -> None:
    with pytest.raises(ValueError, match="no redactor"):
        body_text(content(CHAT, ANSWER), level, None)
