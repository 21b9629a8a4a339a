"""How responses differ from OpenAI's under some path prefixes. A dialect declares it; the application registers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Scope

from api.http.rate_limits import RateLimitStatus


@dataclass(frozen=True, slots=True)
class Conventions:
    """The conventions of one API dialect, or of the console, for a path prefix and everything below it."""

    prefix: str
    error_response: Callable[[Scope, int, str], Response] | None
    """The response to an error, from the request's scope, the HTTP status and the message; None: OpenAI's."""
    request_id_header: str | None = None
    """An additional response header for the request id."""
    rate_limit_headers: Callable[[RateLimitStatus], Mapping[str, str]] = RateLimitStatus.openai_headers
    """The response headers about rate limits."""

    def cover(self, path: str) -> bool:
        """Whether these conventions apply to a path."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")


OPENAI = Conventions("", None)


def find_conventions(conventions: Iterable[Conventions], path: str) -> Conventions | None:
    """The first conventions that apply to a path; None if OpenAI's apply."""
    return next((item for item in conventions if item.cover(path)), None)
