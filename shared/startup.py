"""Starting a process: settings from the environment, or a message that says which one is wrong."""

from __future__ import annotations

import sys
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

S = TypeVar("S", bound=BaseSettings)


def settings_or_exit(kind: type[S]) -> S:
    """Read settings; where one is missing or wrong, say so by its variable's name and exit with 2."""
    try:
        return kind()
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix", ""))
        for problem in error.errors(include_url=False):
            field = str(problem["loc"][0])
            name = field if field.isupper() else f"{prefix}{field}".upper()
            print(f"{name}: {problem['msg']}", file=sys.stderr)
        sys.exit(2)
