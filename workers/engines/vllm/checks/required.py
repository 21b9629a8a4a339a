"""Options that vLLM accepts, and with which a worker cannot serve."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from workers.engines.vllm.checks.problem import Problem

# The values that work, by option, and what they are needed for.
_NEEDED: Mapping[str, tuple[Collection[Any], str]] = {
    "scheduling_policy": (("priority",), "jobs have priorities"),
    "runner": (("auto", "generate"), "a worker generates text"),
    "convert": (("auto", "none"), "a worker generates text"),
    "skip_tokenizer_init": ((False,), "prompts are rendered and answers decoded with the tokenizer"),
    "tokens_only": ((False,), "prompts are rendered and answers decoded with the tokenizer"),
}


def unusable_values(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Values with which jobs would fail, or be served in another order than that of their priorities."""
    for name, (usable, reason) in _NEEDED.items():
        if name in options and options[name] not in usable:
            yield Problem(f"options.{name}", f"must not be {options[name]!r}, because {reason}; omit it")
