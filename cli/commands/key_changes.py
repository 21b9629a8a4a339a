"""`headrace keys set`: changes a key, with the options of `python -m api.keys set`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cli.client import path
from cli.errors import UsageError
from cli.options import Json, connect, seconds_of
from cli.output import print_json, say
from cli.text import one_line

NONE, NEVER, UNSET = "none", "never", "unset"
# Members of `options` in the body of the request, by the name of the command's option.
_FIELDS = {
    "max_output_tokens": ("token_limits", "max_output"),
    "max_input_tokens": ("token_limits", "max_input"),
    "default_output_tokens": ("token_limits", "default_output"),
    "on_exceed": ("token_limits", "on_exceed"),
    "cache_ttl": ("cache", "ttl"),
    "cache_scope": ("cache", "scope"),
    "context": ("context", "strategy"),
    "context_model": ("context", "model"),
    "context_trigger": ("context", "trigger"),
    "context_target": ("context", "target"),
    "context_trigger_tokens": ("context", "trigger_tokens"),
}
_TEXTS = ("on_exceed", "cache_scope", "context", "context_model")
# `none` for one of these removes the group that it is in.
_SWITCHES = ("cache_ttl", "context")


AllowedModels = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="The models and routes that it may be used for, separated by commas."),
]


KeyLogLevel = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        help="At most this is kept in the request log: none, metadata, redacted or full; unset: what its project"
        " keeps.",
    ),
]


def level_or_null(text: str) -> str | None:
    """The value of `--log-level` in JSON; None removes it. The server checks its name: `none` is one."""
    return None if text == UNSET else text


def model_names(text: str) -> list[str]:
    """The names in the value of `--allowed-models`."""
    return [name.strip() for name in text.split(",")]


def change_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, such as key_12.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Another name.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="Its only scope: inference, logs, erase or admin. Repeatable."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help=f"How long it is valid from now on: 90d; {NEVER}: for ever.")
    ] = None,
    priority_floor: Annotated[
        int | None, typer.Option(min=0, max=9, metavar="0-9", help="The most urgent priority of its jobs.")
    ] = None,
    max_output_tokens: Annotated[str | None, typer.Option(metavar="N", help="The largest max_tokens.")] = None,
    max_input_tokens: Annotated[str | None, typer.Option(metavar="N", help="The longest prompt.")] = None,
    default_output_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="The max_tokens of requests without it.")
    ] = None,
    on_exceed: Annotated[
        str | None, typer.Option(metavar="ACTION", help="A max_tokens above the largest: clamp or reject.")
    ] = None,
    cache_ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Answer repeated requests for this long: 1h.")
    ] = None,
    cache_scope: Annotated[
        str | None, typer.Option(metavar="SCOPE", help="Who shares answers: project, key or user.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Do not use the cache unless a request asks for it.")
    ] = False,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="STRATEGY",
            help="Conversations that outgrow the context: error, sliding_window or summarize.",
        ),
    ] = None,
    context_model: Annotated[str | None, typer.Option(metavar="MODEL", help="The model that writes summaries.")] = None,
    context_trigger: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Shorten above this share of the room: 0.8.")
    ] = None,
    context_target: Annotated[str | None, typer.Option(metavar="SHARE", help="Shorten to this share: 0.4.")] = None,
    context_trigger_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Shorten above this many tokens too.")
    ] = None,
    allowed_models: AllowedModels = None,
    log_level: KeyLogLevel = None,
    as_json: Json = False,
) -> None:
    """Change a key; what is not given remains as it is.

    `none` removes an option of the key, so that the model's setting applies; of --log-level, it is a value. Changes
    are effective within seconds.
    """
    values = {
        "max_output_tokens": max_output_tokens,
        "max_input_tokens": max_input_tokens,
        "default_output_tokens": default_output_tokens,
        "on_exceed": on_exceed,
        "cache_ttl": cache_ttl,
        "cache_scope": cache_scope,
        "context": strategy,
        "context_model": context_model,
        "context_trigger": context_trigger,
        "context_target": context_target,
        "context_trigger_tokens": context_trigger_tokens,
    }
    body: dict[str, Any] = {"name": name, "scopes": scope, "priority_floor": priority_floor}
    body = {field: value for field, value in body.items() if value is not None}
    if expires is not None:
        body["expires_in_s"] = None if expires == NEVER else seconds_of(expires, "--expires")
    given = {option: value for option, value in values.items() if value is not None}
    options = _options(given, no_cache=no_cache)
    if allowed_models is not None:
        options["allowed_models"] = None if allowed_models == NONE else model_names(allowed_models)
    if log_level is not None:
        options["log_level"] = level_or_null(log_level)
    if options:
        body["options"] = options
    if not body:
        raise UsageError("Give at least one option to change; `headrace keys set --help` lists them.")
    with connect(context) as client:
        key = client.patch(path("admin", "keys", key_id), json=body)
    print_json(key) if as_json else say(f"{key['id']}  changed")


def _options(given: dict[str, str], *, no_cache: bool) -> dict[str, Any]:
    """The changes of a key's options, as a JSON Merge Patch."""
    changes: dict[str, Any] = {"no_cache": True} if no_cache else {}
    for option, text in given.items():
        group, field = _FIELDS[option]
        if option in _SWITCHES and text == NONE:
            changes[group] = None
            if group == "cache":
                changes.setdefault("no_cache", False)
        elif changes.setdefault(group, {}) is not None:
            changes[group][field] = _value(option, text)
        else:
            switch = next(name for name in _SWITCHES if _FIELDS[name][0] == group)
            raise UsageError(f"--{option.replace('_', '-')} cannot be combined with --{switch.replace('_', '-')} none.")
    return changes


def _value(option: str, text: str) -> Any:
    """The value of an option in JSON; None removes it."""
    if text == NONE:
        return None
    if option in _TEXTS:
        return text
    name = f"--{option.replace('_', '-')}"
    if option == "cache_ttl":
        return int(seconds_of(text, name))
    try:
        number = json.loads(text)
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UsageError(f"{name} must be a number or {NONE}, got {one_line(text)!r}.")
    return number
