"""Names of options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs

from workers.engines.vllm.checks.problem import Problem, did_you_mean, nearest, vllm_name

# Options that the worker sets itself, or that belong to another field of the entry.
_ELSEWHERE = {"model": "model", "served_model_name": "name", "tokenizer_path": "options.tokenizer"}


def unknown_options(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that `AsyncEngineArgs` does not have, or that another field sets."""
    known = AsyncEngineArgs.__dataclass_fields__.keys()
    for name in options:
        field = f"options.{name}"
        if (elsewhere := _ELSEWHERE.get(name)) is not None:
            yield Problem(field, f"is not an engine option here; set {elsewhere} instead")
        elif name not in known:
            hint = did_you_mean(name, known) if nearest(name, known) else "options are AsyncEngineArgs by name"
            yield Problem(field, f"{vllm_name()} has no {name}; {hint}")
