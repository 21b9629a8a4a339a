"""The arguments of `python -m api.keys` that set the options of a key: limits of tokens, response cache, context."""

from __future__ import annotations

import argparse
import re
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from shared.config.durations import seconds_of
from shared.domain.answer_options import (
    MAX_CACHE_TTL_S,
    CacheOptions,
    ContextOptions,
    KeyOptions,
    TokenLimits,
)

Group = TypeVar("Group", bound=BaseModel)

NONE = "none"

# The command's names of the fields of options.
_LIMITS = {
    "max_output": "max_output_tokens",
    "max_input": "max_input_tokens",
    "default_output": "default_output_tokens",
    "on_exceed": "on_exceed",
}
_CACHE = {"ttl": "cache_ttl", "scope": "cache_scope"}
_CONTEXT = {
    "strategy": "context",
    "model": "context_model",
    "trigger": "context_trigger",
    "target": "context_target",
    "trigger_tokens": "context_trigger_tokens",
}
_NAMES = {**_LIMITS, **_CACHE, **_CONTEXT}


class OptionsInvalid(Exception):
    """The arguments contradict each other or the key's options; the message names the argument."""


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments. Those that are not given change nothing."""
    limits = parser.add_argument_group("limits of tokens", f"`{NONE}` removes a limit of the key")
    limits.add_argument("--max-output-tokens", type=_tokens, metavar="N", help="the largest max_tokens")
    limits.add_argument("--max-input-tokens", type=_tokens, metavar="N", help="the longest prompt")
    limits.add_argument("--default-output-tokens", type=_tokens, metavar="N", help="max_tokens of requests without it")
    limits.add_argument(
        "--on-exceed",
        choices=_choices(TokenLimits, "on_exceed"),
        help="lower a max_tokens above the limit, or refuse the request (default: reject)",
    )
    cache = parser.add_argument_group("response cache", "if none is given, the model's settings apply")
    cache.add_argument(
        "--cache-ttl",
        type=_ttl,
        metavar="DURATION",
        help=f"answer repeated requests for this long, such as 1h; `{NONE}`: use the model's setting",
    )
    cache.add_argument("--cache-scope", choices=_choices(CacheOptions, "scope"), help="which requests share answers")
    cache.add_argument("--no-cache", action="store_true", help="do not use the cache unless a request asks for it")
    context = parser.add_argument_group("context", "if none is given, the model's settings apply")
    context.add_argument(
        "--context",
        choices=[*_choices(ContextOptions, "strategy"), NONE],
        help=f"how conversations that outgrow the context are handled; `{NONE}`: use the model's setting",
    )
    context.add_argument("--context-model", metavar="MODEL", help="the model that writes summaries")
    context.add_argument(
        "--context-trigger",
        type=_share,
        metavar="SHARE",
        help="the share of the room above which conversations are shortened (default: 0.8)",
    )
    context.add_argument(
        "--context-target", type=_share, metavar="SHARE", help="the share to which they are shortened (default: 0.4)"
    )
    context.add_argument(
        "--context-trigger-tokens",
        type=_tokens,
        metavar="N",
        help=f"shorten conversations above this many tokens too; `{NONE}` removes it",
    )


def has_options(arguments: argparse.Namespace) -> bool:
    """Whether one of the arguments is given."""
    return arguments.no_cache or any(getattr(arguments, name) is not None for name in _NAMES.values())


def with_arguments(options: KeyOptions, arguments: argparse.Namespace) -> KeyOptions:
    """The options with the changes that the arguments make.

    Raises:
        OptionsInvalid: the result contradicts itself.
    """
    cache = options.cache
    if arguments.no_cache:
        if arguments.cache_ttl is not None or arguments.cache_scope is not None:
            raise OptionsInvalid("--no-cache: cannot be combined with --cache-ttl and --cache-scope")
        cache = None
    elif arguments.cache_ttl == NONE:
        if arguments.cache_scope is not None:
            raise OptionsInvalid("--cache-scope: cannot be combined with --cache-ttl none")
        cache = None
    else:
        cache = _changed(CacheOptions, cache, _CACHE, arguments)
    changes_cache = arguments.no_cache or arguments.cache_ttl is not None or arguments.cache_scope is not None
    return options.model_copy(
        update={
            "token_limits": _limits(options.token_limits, arguments),
            "cache": cache,
            "no_cache": arguments.no_cache if changes_cache else options.no_cache,
            "context": _context(options.context, arguments),
        }
    )


def describe(options: KeyOptions) -> str:
    """The options as arguments; empty if there are none."""
    parts = []
    for group, names in ((options.token_limits, _LIMITS), (options.cache, _CACHE), (options.context, _CONTEXT)):
        for field, name in names.items():
            value = getattr(group, field, None)
            is_default = field in ("trigger", "target") and value == ContextOptions.model_fields[field].default
            is_moot = field == "on_exceed" and getattr(group, "max_output", None) is None
            if value is not None and not is_default and not is_moot:
                parts.append(f"{name.replace('_', '-')}={value}")
    return " ".join([*parts, *(["no-cache"] if options.no_cache else [])])


def _limits(limits: TokenLimits | None, arguments: argparse.Namespace) -> TokenLimits | None:
    changed = _changed(TokenLimits, limits, _LIMITS, arguments)
    if changed is None:
        return None
    if changed.max_output is None and arguments.on_exceed is not None:
        raise OptionsInvalid("--on-exceed: requires --max-output-tokens")
    if changed.max_output is changed.max_input is changed.default_output is None:
        return None
    return changed if changed.max_output is not None else changed.model_copy(update={"on_exceed": "reject"})


def _context(context: ContextOptions | None, arguments: argparse.Namespace) -> ContextOptions | None:
    given = [name for name in _CONTEXT.values() if getattr(arguments, name) is not None]
    if arguments.context == NONE:
        for name in given:
            if name != "context":
                raise OptionsInvalid(f"{_argument(name)}: cannot be combined with --context none")
        return None
    if context is not None and arguments.context not in (None, "summarize"):
        context = context.model_copy(update={"model": None})  # it belongs to the strategy that is replaced
    changed = _changed(ContextOptions, context, _CONTEXT, arguments)
    if given and changed is not None:
        if changed.model is not None and changed.strategy != "summarize":
            raise OptionsInvalid("--context-model: is only for the --context 'summarize'")
        if context is None and arguments.context is None:
            raise OptionsInvalid(f"{_argument(given[0])}: requires --context")
    return changed


def _changed(
    kind: type[Group], old: Group | None, names: dict[str, str], arguments: argparse.Namespace
) -> Group | None:
    """A group of options with the fields that arguments set; None if there are no options in it."""
    given = {field: getattr(arguments, name) for field, name in names.items()}
    changes = {field: None if value == NONE else value for field, value in given.items() if value is not None}
    if not changes:
        return old
    values = {} if old is None else old.model_dump()
    try:
        return kind.model_validate({**values, **changes})
    except ValidationError as error:
        raise OptionsInvalid(_message(error, changes)) from None


def _message(error: ValidationError, changes: dict[str, Any]) -> str:
    """The first error, with the names of arguments."""
    problem = error.errors(include_url=False)[0]
    param = str(problem["loc"][0] if problem["loc"] else problem.get("ctx", {}).get("param", next(iter(changes))))
    text = problem["msg"].removeprefix("Value error, ")
    for field, name in _NAMES.items():
        text = re.sub(rf"(?<!-)\b{field}\b", _argument(name), text)
    return f"{_argument(_NAMES.get(param, param))}: {text}"


def _argument(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _choices(kind: type[BaseModel], field: str) -> list[str]:
    return list(get_args(kind.model_fields[field].annotation))


def _tokens(text: str) -> int | str:
    """A number of tokens, or `none`."""
    if text == NONE:
        return NONE
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of tokens, at least 1, or `{NONE}`, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    """A share of the room for the prompt."""
    if not re.fullmatch(r"[01]?(\.[0-9]{1,6})?", text) or not 0 < float(f"0{text}") <= 1:
        raise argparse.ArgumentTypeError(f"must be a share such as 0.8, above 0 and at most 1, got {text!r}")
    return float(text)


def _ttl(text: str) -> int | str:
    """Seconds of a duration, or `none`."""
    if text == NONE:
        return NONE
    seconds = seconds_of(text, ("", "s", "m", "h", "d"))
    if seconds is None or not 1 <= seconds <= MAX_CACHE_TTL_S:
        raise argparse.ArgumentTypeError(
            f"must be a duration such as 1h or 90s, at most {MAX_CACHE_TTL_S // 86400}d, or `{NONE}`, got {text!r}"
        )
    return int(seconds)
