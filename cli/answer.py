"""Shows a job's events on a terminal or in a pipe: the answer on stdout as it comes, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from cli.errors import CliError
from cli.output import console, note, write_text
from cli.progress import Spinner
from cli.sse import ServerEvent
from cli.text import count, milliseconds, one_line, rate, with_param, without_controls

# The statuses of jobs that have an answer. That of an incomplete one was cut by max_tokens.
SUCCEEDED = frozenset({"completed", "incomplete"})


class AnswerView:
    """Follows one job. `quiet`: without progress, reasoning and statistics."""

    def __init__(self, job_id: str, *, quiet: bool) -> None:
        self._job_id = job_id
        self._quiet = quiet
        self._spinner = Spinner(shown=not quiet)
        self._answer = _Answer()
        self._choices: dict[int, list[str]] = {}
        self._calls: dict[tuple[int, int], dict[str, str]] = {}
        self._reasoning = False
        self._terminal = sys.stdout.isatty()
        # A report has ended the line of the answer on the terminal.
        self._line_ended = False

    def lost(self, problem: CliError, delay_s: float) -> None:
        """Report that the connection was lost and is tried again."""
        self._report(f"{problem} Trying again.", f"{problem} Trying again in {delay_s:.1f} s.")

    def _report(self, text: str, detail: str | None = None) -> None:
        new_line = (self._reasoning or (self._terminal and self._answer.in_line)) and not self._line_ended
        self._line_ended = self._line_ended or new_line
        self._spinner.report(text, detail, new_line=new_line)

    def run(self, events: Iterable[ServerEvent]) -> str:
        """Show the events until the last. Returns the status that the job ended with."""
        last: ServerEvent | None = None
        with self._spinner:
            self._spinner.show("waiting")
            for event in events:
                match event.name:
                    case "job.queued":
                        self._queued(event.data)
                    case "job.started":
                        self._started(event.data)
                    case "job.restarted":
                        self._restarted()
                    case "job.delta":
                        self._delta(event.data)
                    case _ if event.terminal:
                        last = event
        return self._end(last)

    def _queued(self, data: dict[str, Any]) -> None:
        if data.get("paused"):
            self._report("The queue of the model is paused; the job waits until it is resumed.", _place(data))
        else:
            self._spinner.show(_place(data))

    def _started(self, data: dict[str, Any]) -> None:
        worker, attempt = one_line(data.get("worker", "a worker")), data.get("attempt", 1)
        if attempt > 1:
            self._report(f"Attempt {attempt}, by {worker}.")
        else:
            self._spinner.show(f"started by {worker}, waiting for the first token")

    def _restarted(self) -> None:
        self._choices.clear()
        self._calls.clear()
        self._answer.restart()
        self._report("The answer is generated again.")

    def _delta(self, data: dict[str, Any]) -> None:
        index = data.get("index", 0)
        for call in data.get("tool_calls", ()):
            known = self._calls.setdefault((index, call["index"]), {"name": "", "arguments": ""})
            known["name"] = call.get("name") or known["name"]
            known["arguments"] += call.get("arguments", "")
        if index:
            self._choices.setdefault(index, []).append(data.get("text", ""))
            return
        if data.get("reasoning"):
            self._reason(data["reasoning"])
        if text := self._answer.new(data.get("text", "")):
            self._write(text)

    def _reason(self, text: str) -> None:
        """Show reasoning on a terminal, in a style of its own; it is not part of the answer."""
        if self._quiet or not sys.stderr.isatty():
            return
        self._spinner.end()
        console(stderr=True).print(without_controls(text), style="dim", end="")
        self._reasoning = True

    def _write(self, text: str) -> None:
        if self._terminal:
            self._spinner.end()
        else:
            self._spinner.show("receiving the answer")
        self._end_reasoning()
        self._line_ended = False
        if self._answer.differs:
            self._answer.differs = False
            self._spinner.end()
            note("The new answer differs: discard the text above.", style="yellow")
        write_text(text)

    def _end_reasoning(self) -> None:
        if self._reasoning:
            self._reasoning = False
            note("")

    def _end(self, last: ServerEvent | None) -> str:
        if last is None:
            raise CliError(f"The events of {self._job_id} ended without a result.", f"See: headrace job {self._job_id}")
        if text := self._answer.rest():
            self._write(text)
        self._end_reasoning()
        for call in (self._calls[key] for key in sorted(self._calls)):
            self._section(f"{call['name']}({call['arguments']})")
        for index, texts in sorted(self._choices.items()):
            self._section(f"--- choice {index + 1} ---\n{''.join(texts)}")
        self._answer.end_line()
        status = last.name.removeprefix("job.")
        if not self._quiet or status not in SUCCEEDED:
            note(summary(self._job_id, status, last.data), style="dim" if status in SUCCEEDED else "red")
        return status

    def _section(self, text: str) -> None:
        self._answer.end_line()
        write_text(self._answer.new(text))


class _Answer:
    """The text that is shown. After a restart it stays, as long as the new answer begins with it."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._shown = ""
        self._again: str | None = None
        # The next text starts a new answer, which differs from the shown one.
        self.differs = False

    def restart(self) -> None:
        if self._again is None:
            self._shown = "".join(self._parts)
        self._again = ""

    def new(self, text: str) -> str:
        """The text to write for the next text of the answer; it may be empty."""
        if self._again is not None:
            self._again += text
            if self._shown.startswith(self._again):
                return ""
            text = self._continuation()
        if text:
            self._parts.append(text)
        return text

    def rest(self) -> str:
        """The text to write at the end: an answer that was generated again and is shorter than what is shown."""
        if self._again is None or self._again == self._shown:
            return ""
        text = self._continuation()
        self._parts.append(text)
        return text

    @property
    def in_line(self) -> bool:
        """Whether the last line has no end yet."""
        return bool(self._parts) and not self._parts[-1].endswith("\n")

    def end_line(self) -> None:
        if self.in_line:
            write_text("\n")
            self._parts.append("\n")

    def _continuation(self) -> str:
        assert self._again is not None
        answer, self._again = self._again, None
        if answer.startswith(self._shown):
            return answer[len(self._shown) :]
        self.differs = True
        self.end_line()
        self._parts = []
        return answer


def summary(job_id: str, status: str, data: dict[str, Any]) -> str:
    """One line about an ended job: its status, error, tokens, first token, speed and total time."""
    usage, timings, error = data.get("usage") or {}, data.get("timings") or {}, data.get("error")
    parts = [f"{job_id} {status}{' (max_tokens)' if status == 'incomplete' else ''}"]
    if error:
        message = with_param(str(error.get("message")), error.get("param"))
        parts.append(f"{error.get('code')}: {message.removesuffix('.')}")  # more follows on the line
    tokens, ttft, total = usage.get("completion_tokens"), timings.get("ttft_ms"), timings.get("total_ms")
    if tokens:
        parts.append(f"{count(tokens)} tokens")
    if ttft is not None:
        parts.append(f"first token {milliseconds(ttft)}")
        if (speed := tokens_per_s(usage, timings)) is not None:
            parts.append(rate(speed))
    if total is not None:
        parts.append(f"total {milliseconds(total)}")
    return ", ".join(parts)


def tokens_per_s(usage: dict[str, Any], timings: dict[str, Any]) -> float | None:
    """The speed of an answer after its first token; None if it is unknown or there is no second token."""
    tokens, ttft, total = usage.get("completion_tokens"), timings.get("ttft_ms"), timings.get("total_ms")
    if not tokens or tokens < 2 or ttft is None or total is None or total <= ttft:
        return None
    return float((tokens - 1) * 1000 / (total - ttft))


def _place(data: dict[str, Any]) -> str:
    position, eta_s = data.get("position"), data.get("eta_s")
    ahead = "" if position is None else f", {count(position)} ahead"
    if data.get("paused"):
        return f"queued{ahead}; the queue of the model is paused"
    return f"queued{ahead}" + ("" if eta_s is None else f", starts in about {milliseconds(eta_s * 1000)}")
