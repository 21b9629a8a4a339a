"""`headrace status`: health, models, workers, queue and first tokens, at a glance."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.answer import tokens_per_s
from cli.client import Client
from cli.commands.workers import COLUMNS as WORKER_COLUMNS
from cli.commands.workers import paused_models, read_fleet, worker_row
from cli.errors import CannotConnect, CliError, ExitCode, Unavailable
from cli.options import Json, connect
from cli.output import Column, console, print_json, table_lines
from cli.text import count, duration, milliseconds, one_line, rate

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

# First tokens are those of this many jobs, the newest ones of the key's project.
SAMPLE = 100
COLUMNS = (
    Column("MODEL"),
    Column("STATE"),
    Column("WORKERS", right=True, drop=3),
    Column("SLOTS", right=True, drop=6),
    Column("RUNNING", right=True, drop=2),
    Column("WAITING", right=True),
    Column("OLDEST", right=True, drop=5),
    Column("FIRST TOKEN p50", right=True, drop=1),
    Column("p95", right=True, drop=4),
    Column("SPEED p50", right=True, drop=7),
)
_SAMPLE_LINE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def status(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Print the status once and exit: 0 if ready, 1 if not.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="The time between two updates.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Show health, models, workers, queues and first tokens, live until Ctrl-C.

    Without a terminal, and with --json, it is printed once.
    """
    with connect(context) as client:
        if not (once or as_json) and sys.stdout.isatty():
            _watch(client, interval)
            return
        found = read_status(client)
    if as_json:
        print_json(found)
    else:
        out = console()
        for line in status_lines(found, width=out.width if out.is_terminal else None):
            out.print(line)
    if found["status"] != "ok":
        raise typer.Exit(ExitCode.FAILED)


def _watch(client: Client, interval: float) -> None:
    from rich.live import Live

    out = console()
    found = read_status(client)
    with Live(_group(found, out.width, None), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            problem: str | None = None
            try:
                found = read_status(client)
            except (CannotConnect, Unavailable) as error:
                problem = str(error)
            live.update(_group(found, out.width, problem), refresh=True)


def _group(found: dict[str, Any], width: int, problem: str | None) -> Group:
    from rich.console import Group
    from rich.text import Text

    lines = list(status_lines(found, width=width))
    if problem is not None:
        lines += [Text(), Text(f"{one_line(problem)} Trying again; the numbers are the last known.", "red")]
    return Group(*lines)


def read_status(client: Client) -> dict[str, Any]:
    """The state of an installation, as `--json` shows it. What the server does not tell is None."""
    ready = client.get("/readyz", accept=(503,))
    if "checks" not in ready:
        raise Unavailable("The API is shutting down or starting.")
    checks: dict[str, str] = ready["checks"]
    queue = _read_queue(client)
    jobs = client.get("/v1/jobs", params={"limit": SAMPLE})["data"]
    models = client.get("/v1/models")["data"]
    fleet = read_fleet(client)
    paused = paused_models(fleet) or {}
    return {
        "url": client.target.url,
        "version": client.get("/version")["version"],
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "status": ready["status"],
        "checks": {name: state for name, state in checks.items() if not name.startswith("model ")},
        "models": [
            {
                "model": model["id"],
                "state": checks.get(f"model {model['id']}", "unknown"),
                "paused_at": paused.get(model["id"]),
            }
            | _with_slots(queue.get(model["id"], dict.fromkeys(_QUEUE)), model["id"], fleet)
            | _speed([job for job in jobs if job["model"] == model["id"]])
            for model in models
            if "route" not in model
        ],
        "workers": None if fleet is None else [worker for worker in fleet["data"] if worker["alive"]],
    }


_QUEUE = ("workers", "slots", "running", "waiting", "oldest_s")
_GAUGES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "headrace_workers": ("workers", sum),
    "headrace_worker_slots": ("slots", max),  # of one worker
    "headrace_jobs_running": ("running", sum),
    "headrace_jobs_waiting": ("waiting", sum),
    "headrace_queue_oldest_age_seconds": ("oldest_s", max),
}


def _read_queue(client: Client) -> dict[str, dict[str, float | None]]:
    """The queue of each model, from the metrics, which a proxy may keep from the outside."""
    try:
        text = client.send("GET", "/metrics").text
    except (CannotConnect, Unavailable):
        raise
    except CliError:
        return {}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, labels, value in _samples(text):
        if name in _GAUGES and labels.get("state", "ready") == "ready":
            found[labels.get("model", "")][name].append(value)
    return {
        model: {
            key: _number(key, combine(gauges[name])) if gauges[name] else None
            for name, (key, combine) in _GAUGES.items()
        }
        for model, gauges in found.items()
    }


def _number(key: str, value: float) -> float:
    """The value of a gauge: an integer, unless it is a time."""
    return int(value) if key != "oldest_s" and value.is_integer() else value


def _with_slots(queue: dict[str, float | None], model: str, fleet: dict[str, Any] | None) -> dict[str, float | None]:
    """A queue with the slots of all ready workers together, instead of those of one worker.

    Without the `admin` scope, the metrics have to do: all workers of a model have its number of slots there.
    """
    workers, of_one = queue["workers"], queue["slots"]
    if workers is None or of_one is None:  # without metrics, and of an adapter, which has the queue of its base
        return queue | {"slots": None}
    if fleet is None:
        return queue | {"slots": workers * of_one}
    ready = [worker for worker in fleet["data"] if worker["alive"] and worker["state"] == "ready"]
    return queue | {"slots": sum(worker["slots"] for worker in ready if worker["model"] == model)}


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """The samples of Prometheus's text format."""
    for line in text.splitlines():
        if match := _SAMPLE_LINE.match(line):
            yield match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"])


def _speed(jobs: list[dict[str, Any]]) -> dict[str, float | None]:
    """First tokens and speed of jobs, in milliseconds and tokens per second."""
    ttfts = sorted(job["timings"]["ttft_ms"] for job in jobs if job["timings"]["ttft_ms"] is not None)
    speeds = sorted(
        speed for job in jobs if job["usage"] and (speed := tokens_per_s(job["usage"], job["timings"])) is not None
    )
    return {
        "ttft_p50_ms": _percentile(ttfts, 0.5),
        "ttft_p95_ms": _percentile(ttfts, 0.95),
        "tokens_per_s_p50": _percentile(speeds, 0.5),
    }


def _percentile(values: list[float], share: float) -> float | None:
    """The nearest-rank percentile of sorted values."""
    return values[max(0, math.ceil(len(values) * share) - 1)] if values else None


def _state(model: dict[str, Any]) -> Text:
    from rich.text import Text

    if model["paused_at"] is not None:
        return Text("paused", "yellow")
    return Text(one_line(model["state"]), "" if model["state"] == "ok" else "red")


def status_lines(found: dict[str, Any], *, width: int | None) -> Iterator[Text]:
    """The lines that show what `read_status` has returned."""
    from rich.text import Text

    ready = found["status"] == "ok"
    yield Text.assemble(
        ("● ", "green" if ready else "red"),
        ("Headrace " + one_line(found["version"]), "bold"),
        f"  {one_line(found['url'])}  ",
        ("ready" if ready else "not ready", "green" if ready else "red"),
    )
    for name, state in found["checks"].items():
        yield Text.assemble((f"  {one_line(name)} ", "dim"), (one_line(state), "" if state == "ok" else "red"))
    yield Text()
    rows = [
        [
            model["model"],
            _state(model),
            count(model["workers"]),
            count(model["slots"]),
            count(model["running"]),
            count(model["waiting"]),
            duration(model["oldest_s"]) if model["oldest_s"] else "-",
            milliseconds(model["ttft_p50_ms"]),
            milliseconds(model["ttft_p95_ms"]),
            rate(model["tokens_per_s_p50"]),
        ]
        for model in found["models"]
    ]
    yield from table_lines(COLUMNS, rows, width=width)
    if found["workers"]:
        yield Text()
        yield from table_lines(WORKER_COLUMNS, list(map(worker_row, found["workers"])), width=width)
    yield Text()
    yield Text(f"First tokens and speed: of the last {SAMPLE} jobs of this project.", "dim")
