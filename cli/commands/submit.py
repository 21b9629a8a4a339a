"""`headrace submit`: a prompt becomes a job, and its answer is shown as it comes."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.answer import SUCCEEDED, AnswerView
from cli.client import IGNORED, Client, decode, ignored_parameters, path
from cli.errors import CliError, ExitCode, UsageError
from cli.options import Json, Quiet, complete_models, connect
from cli.output import note, print_json, say
from cli.text import one_line

# A route that exists in most installations with several models.
AUTO = "auto"


def submit(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt. Without it, the prompt is read from stdin.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Add the text of a file to the prompt; `-` is stdin. Repeatable."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            envvar="HEADRACE_MODEL",
            autocompletion=complete_models,
            help="The model or route. Without it: the route `auto`, or else the first model.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="The most tokens of the answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, metavar="T", help="0: always the most likely token.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Let the model continue the prompt, without its chat template.")
    ] = False,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON Schema that the answer must match.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", metavar="NAME=VALUE", help="Any other parameter of POST /v1/jobs, as JSON. Repeatable."
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="Stored with the job. Repeatable.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, metavar="0-9", help="0 is served first, 9 last.")
    ] = None,
    cancel_after: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Cancel the job if it has not finished by then: 90s, 5m.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and do not wait.")] = False,
    cancel_on_interrupt: Annotated[
        bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the job. Otherwise it goes on.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Submit a prompt and show the answer as it comes.

    The answer goes to stdout; progress and statistics go to stderr. A lost connection is restored where it broke.
    Ctrl-C leaves the job running. With --json, the finished job is printed instead of its answer.
    """
    body: dict[str, Any] = dict(_parameter(item) for item in parameter or ())
    text = read_prompt(prompt, file or [])
    if raw and system is not None:
        raise UsageError("--raw and --system exclude each other: a system message needs the chat template.")
    if raw:
        body["prompt"] = text
    else:
        messages = [{"role": "system", "content": system}] if system is not None else []
        body["messages"] = [*messages, {"role": "user", "content": text}]
    given = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "priority": priority}
    body |= {name: value for name, value in given.items() if value is not None}
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": read_schema(schema)},
        }
    if metadata:
        body["metadata"] = dict(_pair(item, "--metadata") for item in metadata)
    with connect(context) as client:
        body.setdefault("model", None)
        if body["model"] is None:
            body["model"] = default_model(client)
        # The same key for every attempt: a submit that is repeated because its response was lost is one job.
        headers = {"Idempotency-Key": f"cli-{uuid.uuid4()}"} | ({"Cancel-After": cancel_after} if cancel_after else {})
        response = client.retrying(
            lambda problem, _: note(f"{problem} Trying again."),
            lambda: client.send("POST", "/v1/jobs", json=body, headers=headers),
        )
        job = decode(response)
        ignored = ignored_parameters(response)
        if ignored:
            note(f"Warning: unknown or without effect, and ignored: {', '.join(ignored)}.", style="yellow")
        more = {IGNORED: ignored} if ignored else {}
        if no_wait:
            print_json(job | more) if as_json else say(job["id"])
            return
        follow(client, job["id"], quiet=quiet, as_json=as_json, cancel_on_interrupt=cancel_on_interrupt, more=more)


def follow(
    client: Client,
    job_id: str,
    *,
    quiet: bool,
    as_json: bool,
    cancel_on_interrupt: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Show a job's answer until it has ended, then exit with its outcome.

    `as_json`: print the finished job only, with the members of `more`.
    """
    view = AnswerView(job_id, quiet=quiet)
    try:
        events = client.events(job_id, view.lost)
        if as_json:
            for _ in events:
                pass
            job = client.get(path("jobs", job_id))
            status = job["status"]
            print_json({**job, **(more or {})})
        else:
            status = view.run(events)
    except KeyboardInterrupt:
        if cancel_on_interrupt:
            client.post(path("jobs", job_id, "cancel"))
            note(f"Cancelled {job_id}.")
        else:
            note(f"The job goes on. Follow it:  headrace job {job_id} --follow    Cancel it:  headrace cancel {job_id}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if status not in SUCCEEDED:
        raise typer.Exit(ExitCode.FAILED)


def read_prompt(prompt: str | None, files: list[Path]) -> str:
    """The prompt: the argument and the files, separated by empty lines; stdin if there are none."""
    if prompt is None and not files:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("There is no prompt.", 'Give one:  headrace submit "Name three rivers."')
        files = [Path("-")]
    texts = [prompt] if prompt is not None else []
    return "\n\n".join([*texts, *[read_text(file) for file in files]])


def read_text(file: Path) -> str:
    """The text of a file; `-` is stdin."""
    if str(file) == "-" and sys.stdin is None:
        raise UsageError("stdin is closed.")
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{one_line(file)} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{one_line(file)} is not UTF-8 text.") from None


def read_schema(file: Path) -> dict[str, Any]:
    """The JSON Schema in a file."""
    try:
        value = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file)} is not JSON: {one_line(error)}.") from None
    if not isinstance(value, dict):
        raise UsageError(f"{one_line(file)} is not a JSON Schema: it must be an object.")
    return value


def default_model(client: Client) -> str:
    """The model of jobs without one: the route `auto`, or else the first model."""
    names = [str(model["id"]) for model in client.get("/v1/models")["data"]]
    if not names:
        raise CliError("This installation serves no models.", "Add one to models.yaml.")
    return AUTO if AUTO in names else names[0]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"{option} must be NAME=VALUE, got {one_line(text)!r}.")
    return name, value


def _parameter(text: str) -> tuple[str, Any]:
    """A parameter of the request; a value that is not JSON is a string."""
    name, value = _pair(text, "--param")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
