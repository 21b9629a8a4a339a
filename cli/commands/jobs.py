"""`headrace jobs`, `headrace job` and `headrace cancel`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.answer import tokens_per_s
from cli.client import Client, path
from cli.commands.matching import MAX_JOBS, act_on_matching
from cli.commands.submit import follow as follow_job
from cli.errors import CliError, ExitCode, UsageError
from cli.options import After, All, Json, Limit, ModelThatRan, Quiet, Since, Yes, connect, seconds_of, show_list
from cli.output import Column, note, print_fields, print_json, print_table, say, status_text, write_text
from cli.sse import ServerEvent
from cli.text import age, count, dollars, duration, local_time, milliseconds, one_line, rate

COLUMNS = (
    Column("JOB"),
    Column("STATUS"),
    Column("MODEL", drop=2),
    Column("AGE", right=True, drop=1),
    Column("QUEUED", right=True, drop=6),
    Column("FIRST TOKEN", right=True, drop=3),
    Column("TOKENS", right=True, drop=4),
    Column("TOTAL", right=True, drop=5),
    Column("ATTEMPTS", right=True, drop=7),
)


class Status(StrEnum):
    """The statuses of a job."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def jobs(
    context: typer.Context,
    status: Annotated[
        list[Status] | None, typer.Option(metavar="STATUS", help=f"{', '.join(Status)}. Repeatable.")
    ] = None,
    model: ModelThatRan = None,
    since: Since = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Submitted before: the same.")] = None,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="The end user that the request named.")] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="The id of the key that submitted the job.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="A member of the metadata. Repeatable.")
    ] = None,
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another project, `*` for all. Needs an admin key.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    cancel_all: Annotated[
        bool, typer.Option("--cancel", help="Cancel the open jobs that match, after a question.")
    ] = False,
    replay_all: Annotated[
        bool, typer.Option("--replay", help="Submit the ended jobs that match again, after a question.")
    ] = False,
    yes: Yes = False,
    act: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with an interrupted --replay, whose name it has printed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first; or cancel or replay all that match, up to 10,000 unless --all or --limit is given."""
    filters = {
        "status": [item.value for item in status or ()],
        "model": model,
        "created_after": moment(since, "--since"),
        "created_before": moment(until, "--until"),
        "user": user,
        "key": key,
        "metadata": metadata or [],
        "project": project,
        "after": after,
    }
    params = {name: value for name, value in filters.items() if value not in (None, [])}
    if cancel_all and replay_all:
        raise UsageError("--cancel and --replay cannot be combined.")
    with connect(context) as client:
        shown = None if everything else limit
        if cancel_all or replay_all:
            source = context.get_parameter_source("limit")
            is_given = source is not None and source.name != "DEFAULT"
            most = shown if everything or is_given else MAX_JOBS
            action = "cancel" if cancel_all else "replay"
            act_on_matching(client, action, params, limit=most, yes=yes, act=act, as_json=as_json)
            return
        show_list(client, "/v1/jobs", params, shown, COLUMNS, _row, as_json=as_json, empty="There are no such jobs.")


def moment(text: str | None, option: str) -> str | None:
    """A time as the API takes it: a duration before now, or a timestamp, which is local unless it has a zone."""
    if text is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    with contextlib.suppress(UsageError, OverflowError):
        return (datetime.now(UTC) - timedelta(seconds=seconds_of(text, option))).isoformat()
    raise UsageError(
        f"{option} must be a duration such as 2h, or a timestamp such as 2026-01-31 or 2026-01-31T12:00,"
        f" got {one_line(text)!r}."
    )


def _row(job: dict[str, Any]) -> list[object]:
    timings, usage = job["timings"], job["usage"] or {}
    return [
        job["id"],
        status_text(job["status"]),
        job["model"],
        age(job["created_at"]),
        milliseconds(timings["queued_ms"]),
        milliseconds(timings["ttft_ms"]),
        count(usage.get("completion_tokens")),
        milliseconds(timings["total_ms"]),
        len(job["attempts"]),
    ]


def job(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the answer as it comes, until the end.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show a job: where its time went, its attempts and its answer.

    With --follow, only the answer, from its start; with --follow --json, each event as a line.
    """
    with connect(context) as client:
        found = client.get(path("jobs", job_id))
        if follow and as_json:
            _print_events(client, found["id"])
        elif follow:
            follow_job(client, found["id"], quiet=quiet, as_json=False)
        elif as_json:
            print_json(found)
        else:
            show_job(found)


def _print_events(client: Client, job_id: str) -> None:
    last: ServerEvent | None = None
    for event in client.events(job_id, lambda problem, _: note(f"{problem} Trying again.")):
        if event.name != "job.keepalive":
            print_json({"event": event.name, "id": event.id, "data": event.data})
        last = event
    if last is None or last.name not in ("job.completed", "job.incomplete"):
        raise typer.Exit(ExitCode.FAILED)


def show_job(job: dict[str, Any]) -> None:
    """Print a job: facts, attempts, then its answer."""
    timings, usage, error = job["timings"], job["usage"] or {}, job["error"]
    route = f" (by {job['requested_model']})" if job.get("requested_model") else ""
    user = job.get("user")
    metadata = ", ".join(f"{name}={value}" for name, value in (job.get("metadata") or {}).items())
    print_fields(
        [
            ("Job", job["id"]),
            ("Status", status_text(job["status"])),
            ("Error", None if error is None else f"{error['code']}: {error['message']}"),
            ("Model", f"{job['model']}{route}"),
            ("Priority", job["priority"]),
            ("Queue", _queue(job)),
            ("Submitted", f"{local_time(job['created_at'])} ({age(job['created_at'])} ago)"),
            ("Queued", _known(timings["queued_ms"])),
            ("First token", _known(timings["ttft_ms"])),
            ("Total", _known(timings["total_ms"])),
            ("Tokens", _tokens(usage, timings)),
            ("Cost", None if usage.get("cost") is None else dollars(usage["cost"])),
            ("Worker", job["attempts"][-1]["worker"] if job["attempts"] else None),
            ("User", user),
            ("Metadata", metadata or None),
        ]
    )
    if len(job["attempts"]) > 1 or (error and job["attempts"]):
        say("")
        columns = (
            Column("ATTEMPT", right=True),
            Column("OUTCOME"),
            Column("STARTED", right=True, drop=2),
            Column("TOOK", right=True, drop=3),
            Column("TOKENS", right=True),
            Column("WORKER", drop=1),
        )
        print_table(columns, [_attempt(attempt, job) for attempt in job["attempts"]], empty="")
    _show_output(job["output"])


def _queue(job: dict[str, Any]) -> str | None:
    if job.get("queue_position") is None:
        return None
    if job.get("queue_paused"):
        return f"{count(job['queue_position'])} ahead; the queue of the model is paused"
    eta = "" if job.get("eta_s") is None else f", starts in about {duration(job['eta_s'])}"
    return f"{count(job['queue_position'])} ahead{eta}"


def _known(value: float | None) -> str | None:
    return None if value is None else milliseconds(value)


def _tokens(usage: dict[str, Any], timings: dict[str, Any]) -> str | None:
    if not usage:
        return None
    cached = f" ({count(usage['cached_tokens'])} cached)" if usage.get("cached_tokens") else ""
    speed = tokens_per_s(usage, timings)
    return f"{count(usage['prompt_tokens'])} in{cached}, {count(usage['completion_tokens'])} out" + (
        "" if speed is None else f", {rate(speed)}"
    )


def _attempt(attempt: dict[str, Any], job: dict[str, Any]) -> list[object]:
    from cli.text import parse_time

    started = parse_time(attempt["started_at"])
    after = (started - parse_time(job["created_at"])).total_seconds()
    took = (parse_time(attempt["ended_at"]) - started).total_seconds() if attempt["ended_at"] else None
    return [
        attempt["number"],
        status_text(attempt["outcome"] or "running"),
        f"+{duration(max(0.0, after))}",
        duration(took),
        count(attempt["tokens"]),
        attempt["worker"],
    ]


def _show_output(output: list[dict[str, Any]]) -> None:
    for choice in output:
        if not (choice["text"] or choice["tool_calls"]):
            continue
        say("")
        if len(output) > 1:
            say(f"--- choice {choice['index'] + 1} ---")
        if choice["text"]:
            write_text(choice["text"].removesuffix("\n") + "\n")
        for call in choice["tool_calls"]:
            write_text(f"{call['name']}({call['arguments']})\n")


def cancel(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs or batches.")],
    as_json: Json = False,
) -> None:
    """Cancel jobs and batches; what they have generated is kept."""
    with connect(context) as client:
        of_each(
            ids,
            lambda item: client.post(path("batches" if item.startswith("batch_") else "jobs", item, "cancel")),
            lambda _, found: f"{found['id']}  {found['status']}",
            as_json=as_json,
        )


def of_each(
    ids: Sequence[str],
    request: Callable[[str], dict[str, Any]],
    done: Callable[[str, dict[str, Any]], str],
    *,
    as_json: bool,
) -> None:
    """Send a request for each id and print its outcome; errors do not stop it. Exits with the code of the first one."""
    first: CliError | None = None
    for item in ids:
        try:
            found = request(item)
        except CliError as error:
            if len(ids) == 1:
                raise
            note(f"{item}: {error}", style="red")
            first = first or error
            continue
        print_json(found) if as_json else say(done(item, found))
    if first is not None:
        raise typer.Exit(first.exit_code)
