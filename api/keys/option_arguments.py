"""The arguments of `python -m api.keys` that set the options of a key: limits of tokens, response cache, context."""

from __future__ import annotations

import argparse
import re
from typing import Any, get_args

from pydantic import BaseModel

from api.keys.changes import changed_options
from shared.config.durations import seconds_of
from shared.domain.answer_options import (
    MAX_ALLOWED_MODELS,
    MAX_CACHE_TTL_S,
    CacheOptions,
    ContextOptions,
    KeyOptions,
    TokenLimits,
)
from shared.domain.errors import InvalidRequest
from shared.domain.field_types import MODEL_NAME
from shared.domain.log_level import LogLevel

NONE = "none"
# For the level of the request log, `none` is a value.
UNSET = "unset"

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
_MODELS = {"allowed_models": "allowed_models"}
_LOG = {"log_level": "log_level"}
_NAMES = {**_LIMITS, **_CACHE, **_CONTEXT, **_MODELS, **_LOG}


class OptionsInvalid(Exception):
    """The arguments contradict each other or the key's options; the message names the argument."""


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments. Those that are not given change nothing."""
    parser.add_argument(
        "--allowed-models",
        type=_names,
        metavar="NAMES",
        help=f"the models and routes that requests may name, separated by commas (default: all); `{NONE}`: all",
    )
    parser.add_argument(
        "--log-level",
        choices=[*LogLevel, UNSET],
        metavar="LEVEL",
        help=f"at most this is kept in the request log: {', '.join(LogLevel)}; `{UNSET}`: what its project keeps",
    )
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
    patch = {
        "token_limits": _given(_LIMITS, arguments),
        **_cache(arguments),
        **_context(options.context, arguments),
        **_given(_MODELS, arguments),
        **_given(_LOG, arguments, removed_by=UNSET),
    }
    try:
        changed = changed_options(options, {name: change for name, change in patch.items() if change != {}})
    except InvalidRequest as error:
        raise OptionsInvalid(_message(error)) from None
    context = changed.context
    if arguments.context_model is not None and context is not None and context.strategy != "summarize":
        raise OptionsInvalid("--context-model: is only for the --context 'summarize'")
    return changed


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
    if options.allowed_models is not None:
        parts.append(f"allowed-models={','.join(options.allowed_models)}")
    if options.log_level is not None:
        parts.append(f"log-level={options.log_level}")
    return " ".join([*parts, *(["no-cache"] if options.no_cache else [])])


def _given(names: dict[str, str], arguments: argparse.Namespace, removed_by: str = NONE) -> dict[str, Any]:
    """The fields of a group of options that arguments set; None: it is removed."""
    given = {field: getattr(arguments, name) for field, name in names.items()}
    return {field: None if value == removed_by else value for field, value in given.items() if value is not None}


def _cache(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.no_cache:
        if arguments.cache_ttl is not None or arguments.cache_scope is not None:
            raise OptionsInvalid("--no-cache: cannot be combined with --cache-ttl and --cache-scope")
        return {"no_cache": True}
    if arguments.cache_ttl == NONE:
        if arguments.cache_scope is not None:
            raise OptionsInvalid("--cache-scope: cannot be combined with --cache-ttl none")
        return {"cache": None, "no_cache": False}
    return {"cache": _given(_CACHE, arguments)}


def _context(context: ContextOptions | None, arguments: argparse.Namespace) -> dict[str, Any]:
    given = [name for name in _CONTEXT.values() if getattr(arguments, name) is not None]
    if arguments.context == NONE:
        for name in given:
            if name != "context":
                raise OptionsInvalid(f"{_argument(name)}: cannot be combined with --context none")
        return {"context": None}
    changes = _given(_CONTEXT, arguments)
    if given and context is None and arguments.context is None:
        if arguments.context_model is not None:
            raise OptionsInvalid("--context-model: is only for the --context 'summarize'")
        raise OptionsInvalid(f"{_argument(given[0])}: requires --context")
    return {"context": changes}


def _message(error: InvalidRequest) -> str:
    """The error with the names of arguments."""
    param = error.param or ""
    field, text = param.rpartition(".")[2], error.message.removeprefix(f"{param}: ")
    for name, argument in _NAMES.items():
        text = re.sub(rf"(?<!-)\b{name}\b", _argument(argument), text)
    return f"{_argument(_NAMES.get(field, field))}: {text}"


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


def _names(text: str) -> list[str] | str:
    """Names of models and routes, or `none`."""
    if text == NONE:
        return NONE
    names = [name.strip() for name in text.split(",")]
    if len(names) > MAX_ALLOWED_MODELS or not all(re.match(MODEL_NAME, name) for name in names):
        raise argparse.ArgumentTypeError(f"must be names of models, separated by commas, or `{NONE}`, got {text!r}")
    return names


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
