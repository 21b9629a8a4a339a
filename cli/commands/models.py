"""`headrace models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.client import Client, path
from cli.commands.jobs import of_each
from cli.commands.workers import paused_models, read_fleet
from cli.groups import ListGroup
from cli.options import Json, complete_models, connect
from cli.output import Column, print_fields, print_json, print_table, status_text
from cli.text import count

if TYPE_CHECKING:
    from rich.text import Text

models = typer.Typer(cls=ListGroup, help="List models and routes; pause and resume queues.", rich_markup_mode=None)

COLUMNS = (
    Column("MODEL"),
    Column("KIND", drop=3),
    Column("QUEUE", drop=4),
    Column("CONTEXT", right=True, drop=1),
    Column("CAN", drop=2),
)


@models.command("list")
def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the models, and the routes to them."""
    with connect(context) as client:
        found = _with_pauses(client, client.get("/v1/models")["data"])
    if as_json:
        for model in found:
            print_json(model)
        return
    rows = [
        [model["id"], _kind(model), _queue(model), count(model["max_model_len"]), _abilities(model)] for model in found
    ]
    print_table(COLUMNS, rows, empty="This installation serves no models. Add one to models.yaml.")


@models.command("show")
def show_model(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The name of a model or route.", autocompletion=complete_models)],
    as_json: Json = False,
) -> None:
    """Show what a model or a route can do."""
    with connect(context) as client:
        [model] = _with_pauses(client, [client.get(path("models", name))])
    if as_json:
        print_json(model)
        return
    print_fields(
        [
            ("Model", model["id"]),
            ("Kind", _kind(model)),
            ("Queue", _queue(model)),
            ("Context", f"{count(model['max_model_len'])} tokens" if model["max_model_len"] else "unknown"),
            *((name.replace("_", " ").capitalize(), _shown(value)) for name, value in model["capabilities"].items()),
        ]
    )


@models.command()
def pause(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=complete_models)],
    as_json: Json = False,
) -> None:
    """Pause the queues of models: jobs are accepted and wait. Running jobs continue."""
    _order(context, names, "pause", "paused", as_json=as_json)


@models.command()
def resume(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=complete_models)],
    as_json: Json = False,
) -> None:
    """Resume the queues of models."""
    _order(context, names, "resume", "resumed", as_json=as_json)


def _order(context: typer.Context, names: list[str], order: str, done: str, *, as_json: bool) -> None:
    with connect(context) as client:
        of_each(
            names,
            lambda name: client.post(path("models", name, order)),
            lambda name, _: f"{name}  {done}",
            as_json=as_json,
        )


def _with_pauses(client: Client, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Models with the member `paused_at`: since when the queue is paused. None: it is not.

    Routes have no queue, and a key without the `admin` scope cannot read the pauses; there is no such member then.
    """
    pauses = paused_models(read_fleet(client))
    if pauses is None:
        return models
    return [model if "route" in model else model | {"paused_at": pauses.get(model["id"])} for model in models]


def _queue(model: dict[str, Any]) -> Text | str:
    if "paused_at" not in model:
        return "-"
    return "open" if model["paused_at"] is None else status_text("paused")


def _kind(model: dict[str, Any]) -> str:
    if "route" in model:
        return f"route to {', '.join(model['route']['models'])}"
    return f"adapter of {model['parent']}" if "parent" in model else "model"


def _abilities(model: dict[str, Any]) -> str:
    """What users ask for, of the many capabilities."""
    found = model["capabilities"]
    abilities = {
        "tools": found.get("tools"),
        "schemas": found.get("structures"),
        "log probabilities": found.get("logprobs"),
        "images": "image" in found.get("modalities", ()),
        "files": "file" in found.get("modalities", ()),
        "resume": found.get("resume"),
    }
    return ", ".join(name for name, able in abilities.items() if able)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
