"""Requests to the API: errors as `CliError`, pages as iterators, and event streams that survive a lost connection."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, unquote

from cli.errors import (
    CannotConnect,
    CliError,
    ConnectionLost,
    Members,
    NotFound,
    Refused,
    Unavailable,
    UsageError,
)
from cli.sse import ServerEvent, parse_events
from cli.target import Target
from cli.text import one_line, with_param

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 60.0
# The server sends something every 15 s.
STREAM_TIMEOUT_S = 45.0
# How long a lost connection is tried again, counted from the last response.
RETRY_FOR_S = 300.0
FIRST_DELAY_S, MAX_DELAY_S = 0.1, 5.0
PAGE = 100
# The header of a response that names the parameters of the request that had no effect.
IGNORED = "x-headrace-ignored"

T = TypeVar("T")
# Called before each new attempt, with the problem and the seconds until then.
OnRetry = Callable[[CliError, float], None]


def path(*parts: str) -> str:
    """A path of the API; the parts, such as ids, are escaped. An argument may have bytes that are not UTF-8."""
    return "/v1/" + "/".join(quote(part, safe="", errors="surrogateescape") for part in parts)


class Client:
    """A connection to an API. Use it as a context manager."""

    def __init__(self, target: Target, *, timeout_s: float = TIMEOUT_S) -> None:
        import httpx

        self.target = target
        headers = {"User-Agent": "headrace-cli"}
        if target.api_key:
            if not target.api_key.isascii() or not target.api_key.isprintable():
                raise Refused("HEADRACE_API_KEY is not an API key: it has characters that no key has.")
            headers["Authorization"] = f"Bearer {target.api_key}"
        try:
            self._http = httpx.Client(
                base_url=target.url,
                headers=headers,
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
                trust_env=not target.local,  # a proxy is of no use to an address of this machine
            )
        except (httpx.InvalidURL, ValueError, OSError) as error:  # of the address, or of a proxy or a CA file
            raise UsageError(f"{target.url} cannot be used: {one_line(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **options: Any) -> dict[str, Any]:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> dict[str, Any]:
        return self.request("POST", path, **options)

    def patch(self, path: str, **options: Any) -> dict[str, Any]:
        return self.request("PATCH", path, **options)

    def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send a request and decode the response; raises `CliError` if it failed."""
        return decode(self.send(method, path, **options))

    def send(self, method: str, path: str, *, accept: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        """Send a request and return its response. `accept`: error statuses that are not an error here."""
        import httpx

        try:
            response = self._http.request(method, path, **options)
        except httpx.RequestError as error:
            raise self._request_error(error) from None
        except UnicodeEncodeError:
            raise UsageError("The request cannot be sent: a text in it is not UTF-8.") from None
        except ValueError:
            raise UsageError("The request cannot be sent: JSON has no such number as NaN and infinity.") from None
        if response.is_success or response.status_code in accept:
            return response
        raise error_of(response)

    def retrying(self, on_retry: OnRetry, send: Callable[[], T], *, contacted: bool = False) -> T:
        """Send a request that may be repeated, and repeat it while the server is unavailable.

        `contacted`: the server has answered before. Otherwise the first attempt is repeated only if the connection was
        lost: an address that is wrong, and a server that is overloaded, are reported at once.
        """
        retry = _Retry(on_retry)
        while True:
            try:
                return send()
            except (CannotConnect, Unavailable) as error:
                if not (contacted or isinstance(error, ConnectionLost)):
                    raise
                contacted = True
                retry.wait(error)

    def pages(self, path: str, *, limit: int | None, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield up to `limit` items of a list (None: all), from as many pages as needed.

        After that, `more_after` has the cursor of the next page, if there is one. `partial`: the server has stopped a
        search that took too long, so that there may be fewer items than asked for.
        """
        self.more_after: str | None = None
        self.partial = False
        after, left = params.get("after"), limit
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = self.get(path, params={**params, "limit": size, **({"after": after} if after else {})})
            yield from page["data"]
            after = page["last_id"] if page["has_more"] else None
            if after is None:
                return
            if left is not None:
                left -= len(page["data"])
                if page.get("partial"):
                    self.partial = True
                    break
        self.more_after = after

    def events(self, job_id: str, on_retry: OnRetry) -> Iterator[ServerEvent]:
        """Yield a job's events, from the first to the last.

        If the connection is lost, continues after the last received event. Raises `CannotConnect` or `Unavailable` if
        that has not succeeded for `RETRY_FOR_S`.
        """
        import httpx

        cursor, retry = 0, _Retry(on_retry)
        timeout = httpx.Timeout(STREAM_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        while True:
            headers = {"Last-Event-ID": str(cursor)} if cursor else {}
            try:
                with self._http.stream(
                    "GET", path("jobs", job_id, "stream"), headers=headers, timeout=timeout
                ) as response:
                    if response.status_code == 204:  # the cursor is the last event
                        return
                    if not response.is_success:
                        response.read()
                        raise error_of(response)
                    for event in parse_events(response.iter_bytes()):
                        retry.reset()
                        cursor = event.id or cursor
                        yield event
                        if event.terminal:
                            return
                problem: CliError = ConnectionLost("The connection was closed.", self.target.hint)
            except httpx.RequestError as error:
                problem = self._request_error(error)
            except Unavailable as error:
                problem = error
            except ValueError:
                raise Unavailable(f"{one_line(self.target.url)} has sent an event that is not JSON.") from None
            retry.wait(problem)

    def upload(self, path: str, **options: Any) -> dict[str, Any]:
        """Send a request with a large body, without a limit of its time."""
        import httpx

        return self.request("POST", path, timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S), **options)

    def download(
        self, path: str, params: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Iterator[tuple[int | None, bytes]]:
        """Yield the body of a response: its total size, if it is known, and the next bytes.

        `timeout_s`: how long nothing may come.
        """
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            with self._http.stream("GET", path, params=params, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise error_of(response)
                total = response.headers.get("content-length")
                for chunk in response.iter_bytes():
                    yield (int(total) if total else None), chunk
        except httpx.RequestError as error:
            raise self._request_error(error) from None

    def _request_error(self, error: httpx.RequestError) -> CliError:
        import httpx

        url = one_line(self.target.url)
        if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            return UsageError(f"{url} cannot be used: {one_line(error)}")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            reason = one_line(error) or "no answer"
            return CannotConnect(f"Cannot connect to {url}: {reason}.", self.target.hint)
        if isinstance(error, httpx.DecodingError):
            return Unavailable(f"{url} has sent a response that cannot be decoded: {one_line(error)}.")
        if isinstance(error, httpx.TimeoutException):
            return ConnectionLost(f"{url} does not answer.", self.target.hint)
        return ConnectionLost(f"The connection to {url} was lost: {one_line(error)}.", self.target.hint)


class _Retry:
    """Delays between attempts, which grow; the last response resets them."""

    def __init__(self, on_retry: OnRetry) -> None:
        self._on_retry = on_retry
        self.reset()

    def reset(self) -> None:
        self._delay_s = FIRST_DELAY_S
        self._since: float | None = None

    def wait(self, problem: CliError) -> None:
        """Wait until the next attempt; raises the problem if it has lasted for too long."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > RETRY_FOR_S:
            raise problem
        delay = self._delay_s * random.uniform(0.5, 1.0)
        self._on_retry(problem, delay)
        time.sleep(delay)
        self._delay_s = min(self._delay_s * 2, MAX_DELAY_S)


def error_of(response: httpx.Response) -> CliError:
    """The error that a response reports: the server's message, and the parameter that it is about."""
    status = response.status_code
    if response.has_redirect_location:
        address = one_line(response.headers["location"])
        return UsageError(
            f"{one_line(response.url)} leads to {address}.", "Set HEADRACE_URL to the address where the API is."
        )
    message = with_param(*_server_error(response))
    match status:
        case 401:
            return Refused(message, "Set HEADRACE_API_KEY to a valid key of this installation.")
        case 403:
            return Refused(message)
        case 404:
            return NotFound(message)
        case 429:
            return Unavailable(message, _retry_hint(response))
        case _ if status >= 500:
            return Unavailable(message, _retry_hint(response))
        case _:
            return UsageError(message)


def _retry_hint(response: httpx.Response) -> str | None:
    seconds = one_line(response.headers.get("retry-after", ""))
    return f"Try again in {seconds} s." if seconds.isdecimal() else None


def _server_error(response: httpx.Response) -> tuple[str, str | None]:
    try:
        error = response.json()["error"]
        return one_line(error["message"]), one_line(error["param"]) if error.get("param") else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{one_line(response.url)} answered with status {response.status_code}; is it a Headrace API?", None


def ignored_parameters(response: httpx.Response) -> list[str]:
    """The parameters of a request that the server has ignored."""
    return [unquote(name) for name in response.headers.get(IGNORED, "").split(", ") if name]


def decode(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in a response; {} if it has none."""
    if response.status_code == 204:
        return {}
    try:
        value = response.json(object_hook=Members)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Unavailable(f"{one_line(response.url)} did not answer with JSON; is it a Headrace API?")
    return value
