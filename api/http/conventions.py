"""How responses differ from OpenAI's under some path prefixes. A dialect declares it; the application registers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Conventions:
    """The conventions of one API dialect, for a path prefix and everything below it."""

    prefix: str
    error_body: Callable[[int, str], dict[str, Any]]
    """An error's body, from its HTTP status and message."""
    request_id_header: str
    """An additional response header for the request id."""

    def cover(self, path: str) -> bool:
        """Whether these conventions apply to a path."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")


def find_conventions(conventions: Iterable[Conventions], path: str) -> Conventions | None:
    """The conventions that apply to a path; None if OpenAI's apply."""
    return next((item for item in conventions if item.cover(path)), None)
