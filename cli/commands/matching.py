"""`headrace jobs --cancel` and `--replay`: act on all jobs that match, page by page."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import typer

from cli.client import Client, path
from cli.errors import CliError, ExitCode
from cli.options import ask
from cli.output import note, print_json
from cli.progress import Spinner
from cli.text import count

PAGE = 100
# Without --all or --limit.
MAX_JOBS = 10_000
_DONE = {"cancel": "cancelled", "replay": "replayed"}


def act_on_matching(
    client: Client,
    action: str,
    params: Mapping[str, Any],
    *,
    limit: int | None,
    yes: bool,
    act: str | None,
    as_json: bool,
) -> None:
    """Cancel or replay the newest jobs that match, up to `limit` (None: all), after a question.

    `act`: the name of an interrupted act, so that it replays no job twice.
    """
    found = client.get(path("jobs", "count"), params={**params, "action": action})
    if not found["count"]:
        note(f"There are no jobs to {action}.")
        return
    total = None
    if found["complete"] and (limit is None or found["count"] <= limit):
        total, text = found["count"], f"{count(found['count'])} jobs"
    elif limit is not None and found["count"] >= limit:
        total, text = limit, f"the newest {count(limit)} jobs"
    else:
        text = f"{count(found['count'])} or more jobs"
    if not yes:
        ask(f"{action.capitalize()} {text}?")
    act = act or secrets.token_hex(8)
    params = {**params, "created_before": found["created_before"]}
    progress = _Progress(action, total, as_json=as_json)
    try:
        with Spinner() as spinner:
            after = _pages(client, action, params, limit, act, progress, spinner)
    except (CliError, KeyboardInterrupt):
        note(f"{progress.text()} To go on: --act {act}" + (f" --after {progress.last_id}" if progress.last_id else ""))
        raise
    note(progress.text())
    if after is not None:
        note(f"There are more: add --after {after}, or --all.", style="dim")
    if progress.failed:
        raise typer.Exit(ExitCode.FAILED)


def _pages(
    client: Client,
    action: str,
    params: Mapping[str, Any],
    limit: int | None,
    act: str,
    progress: _Progress,
    spinner: Spinner,
) -> str | None:
    """Act on all pages. Returns where the rest begins, if there is more than `limit`."""
    left = limit
    after = params.get("after")

    def send() -> dict[str, Any]:
        page = {**params, "limit": PAGE if left is None else min(PAGE, left)} | ({"after": after} if after else {})
        return client.post(path("jobs", action), params=page, headers={"Idempotency-Key": act})

    while True:
        spinner.show(progress.text())
        page = client.retrying(lambda problem, _: spinner.report(f"{problem} Trying again."), send, contacted=True)
        progress.add(page["data"])
        after = page["last_id"] if page["has_more"] else None
        progress.last_id = after or progress.last_id
        if left is not None:
            left -= len(page["data"])
        if after is None or left == 0:
            return after


class _Progress:
    """What has become of the jobs so far. `total`: None if it is not known."""

    def __init__(self, action: str, total: int | None, *, as_json: bool) -> None:
        self.action = action
        self.total = total
        self.last_id: str | None = None
        self.failed = 0
        self._seen = 0
        self._done = 0
        self._as_json = as_json

    def add(self, results: list[dict[str, Any]]) -> None:
        """Count the results of a page, and print them as JSON, or those that are errors."""
        for result in results:
            self._seen += 1
            self.failed += result["error"] is not None
            self._done += result["error"] is None and (
                self.action == "replay" or result["status"] in ("cancelled", "cancelling")
            )
            if self._as_json:
                print_json(result)
            elif result["error"] is not None:
                note(f"{result['id']}: {result['error']}", style="red")

    def text(self) -> str:
        """The counts."""
        of = "" if self.total is None else f" of {count(self.total)}"
        parts = [f"{count(self._done)}{of} {_DONE[self.action]}"]
        if ended := self._seen - self._done - self.failed:
            parts.append(f"{count(ended)} had ended already")
        if self.failed:
            parts.append(f"{count(self.failed)} failed")
        return ", ".join(parts) + "."
