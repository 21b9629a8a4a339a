"""Log lines: named fields in both formats, and no messages of errors that may quote a prompt."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pydantic
import pytest
import redis.exceptions
import sqlalchemy.exc

import shared.telemetry.logs
from shared.domain.errors import InvalidRequest, Unavailable
from shared.telemetry.logs import JsonLines, TextLines, redact_errors

MARKER = "the prompt"


@pytest.fixture
def serving() -> Iterator[None]:
    """The process serves requests."""
    before = shared.telemetry.logs._redacting
    redact_errors()
    yield
    shared.telemetry.logs._redacting = before


def record(template: str, *args: Any, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("api.x", logging.INFO, "x.py", 1, template, args, info)


def as_json(template: str, *args: Any, error: BaseException | None = None) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(JsonLines().format(record(template, *args, error=error)))
    return line


def as_text(template: str, *args: Any, error: BaseException | None = None) -> str:
    """The line without its time."""
    return TextLines().format(record(template, *args, error=error)).partition(" ")[2]


class TestFields:
    def test_names_before_and_after_the_text_are_fields(self) -> None:
        template, args = "job=%s attempt=%d %s after %d tokens output=%d s=%.1f", ("job_1", 2, "ended", 3, 4, 0.5)
        line = as_json(template, *args)
        assert line.pop("time").endswith("Z")
        assert line == {
            "level": "info",
            "logger": "api.x",
            "message": "ended after 3 tokens",
            "job": "job_1",
            "attempt": 2,
            "output": 4,
            "s": 0.5,
        }
        assert as_text(template, *args) == "INFO api.x job=job_1 attempt=2 ended after 3 tokens output=4 s=0.5"

    def test_names_within_the_text_are_text(self) -> None:
        line = as_json("model=%s: it has a=%d and more", "m", 1)
        assert line["message"] == "model=m: it has a=1 and more"
        assert "model" not in line

    def test_a_field_that_is_none_is_omitted(self) -> None:
        assert "request" not in as_json("request=%s queued", None)
        assert as_text("request=%s queued", None) == "INFO api.x queued"

    def test_a_value_cannot_inject_another_field(self) -> None:
        """Clients choose their request ids."""
        odd = 'x" job=job_2 level=error'
        line = as_json("request=%s queued", odd)
        assert (line["request"], line["level"], "job" in line) == (odd, "info", False)
        assert as_text("request=%s queued", odd) == f"INFO api.x request={json.dumps(odd)} queued"

    def test_messages_without_fields(self) -> None:
        assert as_json("100%")["message"] == "100%"
        assert as_json("%d%% of it", 5)["message"] == "5% of it"
        assert as_json("a=%s", 1)["message"] == "a=1"

    def test_newlines_do_not_break_a_json_line(self) -> None:
        text = JsonLines().format(record("request=%s two\nlines", "a\nb", error=ValueError("c\nd")))
        assert "\n" not in text


def raised(error: Exception) -> Exception:
    """The error with a stack frame."""

    def fail() -> None:
        raise error

    try:
        fail()
    except Exception as caught:
        return caught
    raise AssertionError


def invalid() -> pydantic.ValidationError:
    try:
        pydantic.TypeAdapter(int).validate_python(MARKER)
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


@pytest.mark.usefixtures("serving")
class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            ValueError(MARKER),
            KeyError(MARKER),
            InvalidRequest(MARKER),
            invalid(),
            sqlalchemy.exc.DBAPIError("INSERT", {}, asyncpg.exceptions.DataError(f"invalid input for $1: '{MARKER}'")),
        ],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize("write", [as_json, as_text])
    def test_the_message_is_omitted(self, write: Callable[..., Any], error: Exception) -> None:
        for line in (
            write("job=%s failed: %s", "job_1", error),
            write("failed", error=raised(error)),
        ):
            assert MARKER not in str(line)
            assert type(error).__name__ in str(line)

    def test_causes_and_stack_frames_are_logged_without_messages(self) -> None:
        def fail() -> None:
            try:
                int(MARKER)
            except ValueError as error:
                raise RuntimeError(f"no: {MARKER}") from error

        try:
            fail()
        except RuntimeError as error:
            logged = as_json("failed", error=error)["error"]
        assert logged.index("ValueError") < logged.index("RuntimeError")
        assert f"{__file__}:" in logged
        assert " fail" in logged
        assert MARKER not in logged

    def test_messages_of_network_errors_are_logged(self) -> None:
        for error in (ConnectionRefusedError(111, "refused"), redis.exceptions.ConnectionError("refused")):
            assert "refused" in as_json("Redis is unavailable: %s", error)["message"]
            assert "refused" in as_json("unavailable", error=raised(error))["error"]

    def test_the_cause_of_unavailable_is_logged(self) -> None:
        error = Unavailable(MARKER)
        assert as_json("failed: %s", error)["message"] == "failed: Unavailable"
        error.__cause__ = ValueError(MARKER)
        assert as_json("failed: %s", error)["message"] == "failed: Unavailable(ValueError)"
        error.__cause__ = OSError(28, "No space left on device")
        assert as_json("failed: %s", error)["message"] == "failed: Unavailable([Errno 28] No space left on device)"

    def test_the_databases_error_code_is_logged(self) -> None:
        cause = asyncpg.exceptions.UniqueViolationError(MARKER)
        error = sqlalchemy.exc.DBAPIError("INSERT", {}, cause)
        assert as_json("failed: %s", error)["message"] == "failed: DBAPIError(UniqueViolationError, SQLSTATE 23505)"

    def test_errors_that_asyncio_quotes_are_omitted(self) -> None:
        line = logging.LogRecord(
            "asyncio", logging.ERROR, "x.py", 1, f"Task exception was never retrieved\nfuture: {MARKER}", (), None
        )
        assert MARKER not in JsonLines().format(line)


def test_errors_before_the_first_request_are_logged_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log shows why an engine does not start."""
    monkeypatch.setattr(shared.telemetry.logs, "_redacting", False)
    error = raised(ValueError("No available memory"))
    assert "No available memory" in as_json("failed: %s", error)["message"]
    assert "No available memory" in as_json("failed", error=error)["error"]
    assert "Traceback" in as_text("failed", error=error)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which is as before after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(("form", "start"), [("json", "{"), ("text", "20")])
def test_the_format_is_configurable(
    root: logging.Logger, form: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shared.telemetry.logs.configure_logging("INFO", form)
    root.handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]
    logging.getLogger("x").warning("words")
    assert capsys.readouterr().err.startswith(start)


@pytest.mark.parametrize("name", ["httpx", "httpcore.connection", "httpcore.http11"])
def test_what_clients_of_http_send_and_receive_is_never_logged(root: logging.Logger, name: str) -> None:
    """URLs and headers may have secrets, such as those of the receivers of webhooks."""
    shared.telemetry.logs.configure_logging("DEBUG", "text")
    assert root.isEnabledFor(logging.DEBUG)
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
