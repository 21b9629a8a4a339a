"""`headrace requests`: the request log."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.client import path
from cli.commands.jobs import moment
from cli.groups import ListGroup
from cli.options import After, All, Json, Limit, ModelThatRan, connect, show_list
from cli.output import Column, note, print_fields, print_json, say, status_text
from cli.text import age, count, local_time, milliseconds, without_controls

requests = typer.Typer(cls=ListGroup, help="Show the request log: what was asked and answered.", rich_markup_mode=None)

COLUMNS = (
    Column("REQUEST"),
    Column("STATUS"),
    Column("MODEL"),
    Column("ENDED", right=True),
    Column("USER", drop=3),
    Column("PROJECT", drop=6),
    Column("TOKENS", right=True, drop=5),
    Column("REFUSED", drop=4),
    Column("FEEDBACK", drop=2),
    Column("BODY", drop=1),
)

# The conditions of lists and of exports.
Route = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="The model or route that the request named. Repeatable.")
]
Project = Annotated[str | None, typer.Option(metavar="NAME", help="The project; another one needs an admin key.")]
User = Annotated[str | None, typer.Option(metavar="NAME", help="The end user that the request named.")]
Conversation = Annotated[str | None, typer.Option(metavar="ID", help="The conversation that the request belongs to.")]
Status = Annotated[list[str] | None, typer.Option("--status", "-s", metavar="STATUS", help="Repeatable.")]
EndedSince = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Ended since: a duration ago (90s, 2h, 7d), or a timestamp."),
]
EndedUntil = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Ended before this time.")]
ErrorCode = Annotated[str | None, typer.Option(metavar="CODE", help="Why the job failed, such as engine_error.")]
IsRefused = Annotated[
    bool | None, typer.Option("--refused/--not-refused", help="Whether the model has refused to answer.")
]
Feedback = Annotated[
    str | None, typer.Option(metavar="METRIC[=VALUE]", help="Has feedback by this metric, and with this value.")
]
Rubric = Annotated[str | None, typer.Option(metavar="NAME", help="A judge has scored the answer by this rubric.")]
MinScore = Annotated[float | None, typer.Option(metavar="N", help="With --rubric: at least this score.")]
MaxScore = Annotated[float | None, typer.Option(metavar="N", help="With --rubric: at most this score.")]
Batch = Annotated[str | None, typer.Option(metavar="ID", help="The batch that the request is a line of.")]


@requests.command("list")
def list_requests(
    context: typer.Context,
    status: Status = None,
    model: ModelThatRan = None,
    route: Route = None,
    since: EndedSince = None,
    until: EndedUntil = None,
    project: Project = None,
    user: User = None,
    conversation: Conversation = None,
    error_code: ErrorCode = None,
    refused: IsRefused = None,
    feedback: Feedback = None,
    rubric: Rubric = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
    batch: Batch = None,
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="The x-request-id of the HTTP request.")] = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List requests that have ended, newest first, without what was asked and answered."""
    params = conditions(
        status=status,
        model=model,
        route=route,
        start=moment(since, "--since"),
        end=moment(until, "--until"),
        project=project,
        user=user,
        conversation=conversation,
        error_code=error_code,
        refused=refused,
        feedback=feedback,
        rubric=rubric,
        min_score=min_score,
        max_score=max_score,
        batch=batch,
        request_id=request_id,
        after=after,
    )
    with connect(context) as client:
        shown = None if everything else limit
        empty = "There are no such requests."
        show_list(client, path("requests"), params, shown, COLUMNS, _row, as_json=as_json, empty=empty)


@requests.command()
def show(
    context: typer.Context,
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the job.")],
    as_json: Json = False,
) -> None:
    """Show a request beside its answer. The audit log records that the key has read it."""
    with connect(context) as client:
        found = client.get(path("requests", request_id))
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("Request", found["id"]),
            ("Status", status_text(found["status"])),
            ("Error", found["error_code"]),
            (
                "Model",
                found["model"] if found["route"] == found["model"] else f"{found['model']} (by {found['route']})",
            ),
            ("Project", found["project"]),
            ("Key", found["key"]),
            ("User", found["user"]),
            ("Conversation", found["conversation"]),
            ("HTTP request", found["request_id"]),
            ("Batch", found["batch"]),
            ("Ended", f"{local_time(found['ended_at'])} ({age(found['ended_at'])} ago)"),
            ("First token", None if found["first_token_ms"] is None else milliseconds(found["first_token_ms"])),
            ("Total", milliseconds(found["total_ms"])),
            ("Tokens", f"{count(found['input_tokens'])} in, {count(found['output_tokens'])} out"),
            ("Refused", _refused(found)),
            ("Feedback", _feedback(found) or None),
            ("Scores", ", ".join(f"{one['rubric']} {one['score']:g}" for one in found["scores"]) or None),
            ("Level", found["level"]),
        ]
    )
    say("")
    content = found["content"]
    if content is None:
        note(found["missing"]["message"], style="yellow")
        return
    asked = content["request"]
    for message in asked.get("messages") or [{"role": "prompt", "content": asked.get("prompt")}]:
        _show_text(message["role"], _text_of(message.get("content")))
    for choice in content["output"]:
        _show_text("answer", choice.get("text") or "")
        for call in choice.get("tool_calls") or ():
            _show_text("call", f"{call['name']}({call['arguments']})")
    if replaced := content["redactions"]:
        note("Replaced: " + ", ".join(f"{number} {kind}" for kind, number in replaced.items()), style="dim")


def conditions(**values: object) -> dict[str, Any]:
    """The parameters of conditions that are set."""
    found = {name: value for name, value in values.items() if value is not None and value != []}
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in found.items()}


def _row(item: dict[str, Any]) -> list[object]:
    tokens = (item["input_tokens"] or 0) + (item["output_tokens"] or 0)
    return [
        item["id"],
        status_text(item["status"]),
        item["model"],
        age(item["ended_at"]),
        item["user"] or "-",
        item["project"] or "-",
        count(tokens),
        _refused(item) or "-",
        _feedback(item) or "-",
        item["body"] if item["body"] != "none" else item["level"],
    ]


def _refused(item: dict[str, Any]) -> str | None:
    if item["refused"] is None:
        return None
    return f"{'yes' if item['refused'] else 'no'} ({item['refusal_source']})"


def _feedback(item: dict[str, Any]) -> str:
    return ", ".join(f"{one['metric']}={_value(one['value'])}" for one in item["feedback"])


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text_of(content: Any) -> str:
    """The text of a content; of images and files, what they are."""
    if isinstance(content, list):
        return "\n".join(part.get("text") or f"[{part.get('type')}]" for part in content)
    return content if isinstance(content, str) else "" if content is None else str(content)


def _show_text(role: str, text: str) -> None:
    from rich.text import Text

    from cli.output import console

    console().print(Text(f"{role}: ", "bold").append_text(Text(without_controls(text))))
