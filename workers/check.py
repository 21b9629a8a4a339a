"""`python -m workers.check MODEL`: checks a model's entry on this machine and prints what its engine would run with.

Nothing is served, no weights are loaded, and neither PostgreSQL nor Redis is needed. The exit code is 0, 1 if the
options cannot work here, or 2 if the call or models.yaml is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.config.models.loader import load_registry
from shared.config.settings import Settings
from shared.domain.errors import HeadraceError, NotFound
from shared.telemetry.logs import configure_logging
from workers.engines.factory import describe_engine

_WIDTH = 20


def lines(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The description as text, one value in a line."""
    for name, item in value.items():
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(item, Mapping):
            yield label
            yield from lines(item, indent + "  ")
        else:
            yield f"{label:<{_WIDTH}} {_text(item)}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, list) else str(value)


def main(arguments: list[str] | None = None) -> int:
    """Check and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.check", description="Print what a model's engine would run with, without serving."
    )
    parser.add_argument("model", help="the name of a model in models.yaml; of an adapter, its base is checked")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--models",
        type=Path,
        default=os.environ.get("HEADRACE_MODELS") or Settings.model_fields["models"].default,
        help="the file that declares the models (HEADRACE_MODELS)",
    )
    chosen = parser.parse_args(arguments)
    configure_logging(os.environ.get("HEADRACE_LOG_LEVEL", "ERROR"), "text")
    # torch's loggers have handlers and a level of their own, and warn on every machine without Triton.
    os.environ.setdefault("TORCH_LOGS", "-torch")
    try:
        registry = load_registry(chosen.models)
        model = registry[registry.queue_of(chosen.model)]
    except HeadraceError as error:
        reason = error.message if isinstance(error, NotFound) else str(error)
        print(reason, file=sys.stderr)
        return 2
    try:
        described = describe_engine(model)
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(described, indent=2) if chosen.json else "\n".join(lines(described)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
