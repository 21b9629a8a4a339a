"""Attributes an error of vLLM about a whole configuration to the option that it is about."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs

from workers.engines.vllm.checks.problem import Problem, reason_of

MAX_REASON = 600
# Seconds for the search of the option without which vLLM accepts the others.
SEARCH_S = 10.0


def refusal(
    options: Mapping[str, Any], error: Exception, accepts: Callable[[Mapping[str, Any]], bool]
) -> list[Problem]:
    """The problems that an error stands for.

    An error names an option, or is about a field that has the option's name in one of vLLM's classes, or is the
    consequence of a value of a wrong type, which vLLM has not checked before it used it. Otherwise it is about the
    option without which vLLM `accepts` the others.
    """
    reason = reason_of(error) or type(error).__name__
    name = _owner(options, error) or _mentioned(options, reason)
    if name is None and (misfits := list(_wrong_types(options))):
        return misfits
    if name is None:
        name = _culprit(options, accepts)
    if len(reason) > MAX_REASON:
        reason = f"{reason[:MAX_REASON]}…"
    return [Problem("options" if name is None else f"options.{name}", f"vLLM refuses it: {reason}")]


def _owner(options: Mapping[str, Any], error: Exception) -> str | None:
    """The option whose mapping an error is about, or whose value is a field of one of vLLM's classes."""
    if not isinstance(error, ValidationError):
        return None
    title = _plain(error.title)
    if (name := next((name for name in options if _plain(name) == title), None)) is not None:
        return name
    fields = {str(problem["loc"][0]) for problem in error.errors(include_url=False) if problem["loc"]}
    for field in sorted(fields):
        if field in options:
            return field
        # `kv_cache_dtype` is `CacheConfig.cache_dtype`, `scheduling_policy` is `SchedulerConfig.policy`.
        if (name := next((name for name in options if name.endswith(f"_{field}")), None)) is not None:
            return name
    return None


def _plain(name: str) -> str:
    """`compilation_config` and `CompilationConfig` are the same."""
    return name.replace("_", "").lower().removesuffix("config")


def _mentioned(options: Mapping[str, Any], reason: str) -> str | None:
    names = [name for name in options if any(re.search(rf"\b{text}\b", reason, re.I) for text in _spellings(name))]
    return max(names, key=len, default=None)


def _culprit(options: Mapping[str, Any], accepts: Callable[[Mapping[str, Any]], bool]) -> str | None:
    """The option without which vLLM accepts the others; None if there is none, or the search takes too long."""
    until = time.monotonic() + SEARCH_S
    for name in options:
        if time.monotonic() > until:
            break
        if accepts({other: value for other, value in options.items() if other != name}):
            return name
    return None


def _spellings(name: str) -> Iterator[str]:
    """The name itself, as on the command line, and as words: `enable_sleep_mode`, `enable-sleep-mode`, `sleep mode`."""
    yield re.escape(name)
    yield re.escape(name.replace("_", "-"))
    words = name.removeprefix("enable_").split("_")
    if len(words) > 1:
        yield re.escape(" ".join(words))


def _wrong_types(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options whose values are not of the types that vLLM declares. Types that it cannot name are left out."""
    for name, value in options.items():
        field = AsyncEngineArgs.__dataclass_fields__.get(name)
        if field is None or isinstance(field.type, str):
            continue
        try:
            TypeAdapter(field.type).validate_python(value)
        except ValidationError as error:
            yield Problem(f"options.{name}", f"vLLM does not accept {value!r:.100}: {reason_of(error):.300}")
        except Exception:  # noqa: S112  # the type is not one of pydantic's, or needs more than the value
            continue
