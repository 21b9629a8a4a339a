"""A browser of the web console, as the benchmark needs it: it signs in, loads pages, and keeps one open."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from urllib.parse import parse_qs, urlsplit

import httpx

from benchmarks.systems.headrace import Headrace

# Pages with a few hundred or a few thousand jobs behind them, by name.
PAGES = {
    "overview": "",
    "jobs": "jobs",
    "failed jobs": "jobs?status=failed",
    "models": "models",
    "one model": "models/model?name=large&range=24h",
    "routing": "routing",
    "keys": "keys",
}
# Someone who looks at jobs lists them this often, while the overview is open beside it.
LISTED_EVERY_S = 1.0
OVERVIEW_EVENTS = "overview/live"
# A session may have no more live pages than this open.
TABS_PER_SESSION = 10


@contextlib.contextmanager
def signed_in(system: Headrace) -> Iterator[httpx.Client]:
    """A client with a session that has the rights of the benchmark's key."""
    url = f"http://127.0.0.1:{system.port}"
    link = httpx.post(f"{url}/v1/console/links", headers=system.headers).raise_for_status().json()["path"]
    (token,) = parse_qs(urlsplit(link).query)["token"]
    with httpx.Client(base_url=f"{url}/console/", headers={"Origin": url}, timeout=60) as client:
        response = client.post("sign-in", data={"token": token})
        if response.status_code != 303:
            raise RuntimeError(f"cannot sign in: {response.status_code}")
        yield client


def load(client: httpx.Client, page: str, count: int) -> list[float]:
    """Load a page so many times. Returns the sorted times in milliseconds."""
    times = []
    for _ in range(count):
        began = perf_counter()
        client.get(page).raise_for_status()
        times.append(1000 * (perf_counter() - began))
    return sorted(times)


@contextlib.contextmanager
def reader(client: httpx.Client) -> Iterator[None]:
    """Keep the overview open, and list jobs every `LISTED_EVERY_S`, until the block ends.

    Raises:
        RuntimeError: a page could not be read.
    """
    ended = threading.Event()
    failures: list[Exception] = []

    def guarded(read: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                read()
            except Exception as error:
                failures.append(error)

        return threading.Thread(target=run, daemon=True)

    def watch() -> None:
        with client.stream("GET", OVERVIEW_EVENTS) as events:
            for _ in events.raise_for_status().iter_raw():
                if ended.is_set():
                    return

    def list_jobs() -> None:
        while not ended.wait(LISTED_EVERY_S):
            client.get("jobs").raise_for_status()

    threads = [guarded(watch), guarded(list_jobs)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    if failures:
        raise RuntimeError("the console could not be read") from failures[0]


@contextlib.contextmanager
def tabs(system: Headrace, count: int) -> Iterator[None]:
    """Keep the overview open in so many tabs of several sessions until the block ends.

    Raises:
        RuntimeError: a tab was closed by the server.
    """
    ended = threading.Event()
    answered = [threading.Event() for _ in range(count)]
    closed: list[int] = []

    def watch(client: httpx.Client, number: int) -> None:
        try:
            with client.stream("GET", OVERVIEW_EVENTS) as events:
                for _ in events.raise_for_status().iter_raw():
                    answered[number].set()
                    if ended.is_set():
                        return
        finally:
            if not ended.is_set():
                closed.append(number)
                answered[number].set()

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(signed_in(system)) for _ in range(-(-count // TABS_PER_SESSION))]
        threads = [
            threading.Thread(target=watch, args=(clients[number // TABS_PER_SESSION], number), daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        for event in answered:
            event.wait()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    if closed:
        raise RuntimeError(f"{len(closed)} of {count} tabs were closed")
